"""Bad files, folders and a full disk: one line of error, one of hint, an exit code, and nothing half-written."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.dsctl.refusing import BASE, refused, words
from tests.dsctl.running import Dsctl, Run

pytestmark = pytest.mark.usefixtures("files")


@pytest.mark.parametrize("command", BASE)
@pytest.mark.parametrize(("height", "nearest"), [("100", ("96", "112")), ("8", ("16",))])
def test_a_size_that_does_not_divide_is_refused_with_the_nearest(
    dsctl: Dsctl, model: Path, command: str, height: str, nearest: tuple[str, ...]
):
    error, hint = refused(lambda: dsctl(*words(command, model, height=height, width="32")), 2)
    assert f"height {height}" in error
    assert all(size in hint for size in nearest)


def no_weights(folder: Path) -> str:
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    return "transformer"


def another_family(folder: Path) -> str:
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "FluxTransformer2DModel"}))
    return "FluxTransformer2DModel"


def another_pipeline(folder: Path) -> str:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return "StableDiffusionPipeline"


def cut_off(folder: Path) -> str:
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return "diffusion_pytorch_model.safetensors"


def cut_header(folder: Path) -> str:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    return "diffusion_pytorch_model.safetensors"


def cut_config(folder: Path) -> str:
    (folder / "vae" / "config.json").write_text('{"_class_name": "Auto')
    return "vae/config.json"


def other_sizes(folder: Path) -> str:
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_layers": 3}))
    return "transformer"


def no_tokenizer(folder: Path) -> str:
    shutil.rmtree(folder / "tokenizer")
    return "tokenizer"


def no_text_encoder(folder: Path) -> str:
    shutil.rmtree(folder / "text_encoder")
    return "text_encoder"


BREAKS = [no_weights, another_family, another_pipeline, cut_off, cut_header, cut_config, other_sizes]
BREAKS += [no_tokenizer, no_text_encoder]


@pytest.mark.parametrize("command", ["train", "infer"])
@pytest.mark.parametrize("damage", BREAKS, ids=lambda damage: damage.__name__)
def test_a_broken_model_folder_is_refused_by_what_is_broken(
    dsctl: Dsctl, model: Path, command: str, damage: Callable[[Path], str]
):
    shutil.copytree(model, "broken")
    named = damage(Path("broken"))
    error, _ = refused(lambda: dsctl(*words(command, Path("./broken").absolute())), 1)
    assert named in error


@pytest.mark.parametrize("command", ["train", "cache"])
@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("metadata.csv", "image,prompt\n", "metadata.csv"),
        ("metadata.csv", "", "metadata.csv"),
        ("metadata.csv", "image,text\na.png,x\n", "prompt"),
        ("metadata.csv", "file,prompt\na.png,x\n", "image"),
        ("metadata.csv", "image,prompt\nb.png,x\n", "b.png"),
        ("metadata.csv", "image,prompt\na.png,\n", "prompt"),
        ("metadata.csv", "image,prompt\n../cut.png,x\n", "cut.png"),
        ("a.png", "no picture at all", "a.png"),
        ("a.png", "", "a.png"),
    ],
)
def test_a_dataset_that_cannot_be_used_is_refused(
    dsctl: Dsctl, model: Path, command: str, name: str, content: str, named: str
):
    (Path("data") / name).write_text(content, encoding="utf-8")
    error, _ = refused(lambda: dsctl(*words(command, model)), 1)
    assert named in error


def test_a_folder_of_pictures_without_a_table_is_refused(dsctl: Dsctl, model: Path):
    Path("data/metadata.csv").unlink()
    error, hint = refused(lambda: dsctl(*words("train", model)), 1)
    assert "data" in error
    assert "metadata" in error + hint


def test_an_output_folder_that_holds_a_run_is_refused(dsctl: Dsctl, model: Path):
    Path("out").mkdir()
    Path("out/run.json").write_text("{}", encoding="utf-8")
    error, hint = refused(lambda: dsctl(*words("train", model)), 1)
    assert "out/run.json is there already, and no run of dsctl wrote it" in error
    assert "--output-path" in hint


def test_a_picture_cannot_replace_a_folder(dsctl: Dsctl, model: Path):
    Path("out/a.png").mkdir(parents=True)
    error, _ = refused(lambda: dsctl(*words("infer", model)), 1)
    assert "out/a.png is a folder" in error


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_leaves_no_picture_and_no_folder(dsctl: Dsctl, model: Path):
    def run() -> Run:
        with room_for(100):
            return dsctl(*words("infer", model))

    error, hint = refused(run, 1)
    assert "out/a.png could not be written: no space left" in error
    assert "free some disk space" in hint


def test_a_disk_that_is_full_leaves_no_half_of_a_lora(dsctl: Dsctl, model: Path):
    with room_for(4000):
        error, hint = dsctl(*words("train", model)).fault(1)
    assert "could not be written: no space left" in error
    assert "free some disk space" in hint
    left = {path.name for path in Path("out").rglob("*")} if Path("out").exists() else set()
    assert left <= {"run.json", "metrics.jsonl"}
