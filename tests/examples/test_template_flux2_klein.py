"""The template for FLUX.2 klein has the blocks of its transformer, and trains on a tiny one from the data it makes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsctl.app import main
from dsctl.config import build_options
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.options import TrainOptions
from dsctl_core.template import load_template
from dsctl_core.template.skeleton import blocks_of_model
from dsctl_core.template.trust import Trust
from tests.tiny_models import write_tiny_flux2

LUMA = np.array([0.299, 0.587, 0.114])
TINY = '{"double": 1, "single": 2, "heads": 2, "head_dim": 16}'


@pytest.fixture
def example(repository: Path) -> Path:
    return repository / "examples" / "template_flux2_klein"


def test_it_has_the_blocks_of_the_published_transformer(example: Path) -> None:
    template = load_template(ModelConfig(example / "brightness"), Trust(granted=True))
    outputs = template.forward(None, template.process_inputs(None, {"scale": 0.3}))  # type: ignore[arg-type]
    shapes = {name: key.shape[2:] for name, (key, _) in outputs["kv_cache"].items()}
    assert shapes == blocks_of_model("flux2-klein-base-4b")
    assert len(shapes) == 25


def test_it_trains_on_the_data_that_it_makes(example: Path, tmp_path: Path, python: str) -> None:
    pictures = Path("pictures")
    pictures.mkdir()
    Image.effect_noise((64, 48), 40).convert("RGB").save(pictures / "a.png")
    (pictures / "metadata.csv").write_text("image,prompt\na.png,noise\n", encoding="utf-8")
    subprocess.run([python, str(example / "make_data.py"), "pictures", "data/brightness"], check=True)
    rows = [json.loads(line) for line in Path("data/brightness/metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 5
    for row in rows:
        with Image.open(Path("data/brightness") / row["image"]) as picture:
            mean = (np.asarray(picture) / 255 @ LUMA).mean()
        assert mean == pytest.approx(row["template_inputs"]["scale"], abs=0.01)
    write_tiny_flux2(tmp_path / "tiny")
    shutil.copytree(example / "brightness", "template")
    code = Path("template/model.py")
    before = code.read_text(encoding="utf-8")
    code.write_text(before.replace("CONFIG = SIZES", f"CONFIG = {TINY}"), encoding="utf-8")
    assert code.read_text(encoding="utf-8") != before
    given = build_options(TrainOptions, {}, example / "run.toml")
    assert given.templates.template is not None and given.trained_names == ("template_model",)
    words = [
        "train",
        "--config",
        str(example / "run.toml"),
        "--model",
        str(tmp_path / "tiny"),
        "--template",
        "template",
    ]
    words += [
        "--trust-template",
        "--device",
        "cpu",
        "--dataset-repeat",
        "1",
        "--num-epochs",
        "1",
        "--output-path",
        "out",
    ]
    assert main(words) == 0
    weights, _ = read_safetensors(Path("out/step-5.safetensors"))
    assert {"heads.double_0.weight", "heads.single_1.weight", "encode.0.weight"} <= set(weights)
    drawn = ["infer", "--model", str(tmp_path / "tiny"), "--prompt", "noise", "--height", "32", "--width", "32"]
    drawn += [
        "--template",
        "template:out/step-5.safetensors",
        "--trust-template",
        "--template-inputs",
        '{"scale": 0.8}',
    ]
    assert main([*drawn, "--num-inference-steps", "1", "--device", "cpu", "--output", "a.png"]) == 0
