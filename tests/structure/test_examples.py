"""The examples work: each run.toml is accepted, the demo runs from its first command to its grid."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from dsctl.config import build_options
from dsctl_core.options import TrainOptions

REPOSITORY = Path(__file__).parents[2]
EDIT_ROWS = ("source", "before", "after")
CONFIGS = sorted((REPOSITORY / "examples").glob("*/run.toml"))


def test_the_examples_are_seen():
    assert {path.parent.name for path in CONFIGS} >= {"lora_tiny", "lora_qwen_image", "full_finetune_qwen_image"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_a_run_toml_is_accepted(path: Path):
    options = build_options(TrainOptions, {}, path)
    assert options.output.output_path.parts[0] == "runs"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_an_example_says_what_it_is(path: Path):
    assert (path.parent / "README.md").is_file()


def test_the_demo_of_control_measures_how_silhouettes_are_followed(python: str, tmp_path: Path):
    paths = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "STEPS": "2", "PICTURES": "16", "PATH": paths}
    script = REPOSITORY / "examples" / "demo_control" / "run.sh"
    done = subprocess.run(
        ["sh", script, tmp_path / "demo"], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    found = [float(score) for score in re.findall(r"mean IoU (\d\.\d+)", done.stdout)]
    assert len(found) == 3
    assert 0 < found[0] < 1
    assert (tmp_path / "demo" / "controlnet" / "step-2.safetensors").is_file()
    assert (tmp_path / "demo" / "grid.png").is_file()


@pytest.mark.parametrize(
    ("demo", "lines", "rows"), [("demo", "prompts.txt", ("before", "after")), ("demo_edit", "edits.txt", EDIT_ROWS)]
)
def test_a_demo_draws_its_grid_before_and_after(
    python: str, tmp_path: Path, demo: str, lines: str, rows: tuple[str, ...]
):
    from PIL import Image, ImageChops

    environment = {**os.environ, "STEPS": "2", "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"}
    folder = REPOSITORY / "examples" / demo
    done = subprocess.run(
        ["sh", folder / "run.sh", tmp_path / "demo"],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    drawn = [sorted((tmp_path / "demo" / name).glob("*.png")) for name in rows]
    assert {len(files) for files in drawn} == {len((folder / lines).read_text().splitlines())} == {6}
    for one, other in zip(*drawn[-2:], strict=True):
        with Image.open(one) as a, Image.open(other) as b:
            assert ImageChops.difference(a, b).getbbox(), f"the LoRA left {other.name} as it was"
    with Image.open(tmp_path / "demo" / "grid.png") as grid:
        assert grid.width > 6 * 96
        assert grid.height > len(rows) * 96
