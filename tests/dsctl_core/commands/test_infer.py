"""`infer`: pictures that can be made again from their metadata, and nothing written by a run that fails."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

from dsctl_core.commands import infer as inference
from dsctl_core.commands.infer import infer, output_files
from dsctl_core.commands.infer_inputs import fill_in, read_prompts
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.resolve import resolve_model
from dsctl_core.files.png import write_png
from dsctl_core.lora import add_lora, export_lora
from dsctl_core.media.image_file import GRID_GAP, grid
from dsctl_core.options import InferOptions
from dsctl_core.version import __version__
from tests.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("qwen-image", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def lora(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA on the model's transformer that changes it clearly."""
    from dsctl_core.files.safetensors import write_safetensors

    options = InferOptions(model=str(model), prompt="p", device="cpu")
    dit = inference.load(options, resolve_model(str(model)), torch.device("cpu"), torch.float32).dit
    add_lora(dit, ("to_q", "to_v"), rank=2)
    for name, parameter in dit.named_parameters():
        if "lora_B" in name:
            parameter.data += 1.0
    path = tmp_path_factory.mktemp("loras") / "strong.safetensors"
    write_safetensors(path, export_lora(dit, "dit"), {})
    return path


def build(model: Path, **values: Any) -> InferOptions:
    small = {"height": 32, "width": 48, "num_inference_steps": 2, "device": "cpu", "prompt": "a cat"}
    return InferOptions(**{"model": str(model), **small, **values})


def parameters(path: Path) -> dict[str, Any]:
    with Image.open(path) as picture:
        return json.loads(picture.text["parameters"])  # type: ignore[attr-defined]


def pixels(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def same(first: Path, second: Path) -> bool:
    return ImageChops.difference(pixels(first), pixels(second)).getbbox() is None


class Recorded:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int | None]] = []
        self.advanced: list[dict[str, Any]] = []
        self.ends = 0

    def start(self, what: str, total: int | None, done: int = 0, unit: str = "step") -> None:
        self.started.append((what, total))

    def advance(self, n: int = 1, **fields: Any) -> None:
        self.advanced.append(fields)

    def finish(self) -> None:
        self.ends += 1

    def note(self, message: str) -> None:
        """Nothing to remember."""


def test_a_picture_carries_what_made_it(model: Path):
    asked = {"prompt": "a caf\u00e9 \u732b", "negative_prompt": "b", "seed": 7, "cfg_scale": 2.5}
    result = infer(build(model, **asked, output="new/folder/a.png"))
    assert result.files == [Path("new/folder/a.png")]
    assert result.grid is None
    assert pixels(result.files[0]).size == (48, 32)
    assert parameters(result.files[0]) == {
        **asked,
        "num_inference_steps": 2,
        "solver": "euler",
        "height": 32,
        "width": 48,
        "model": str(model),
        "loras": [],
        "dsctl_version": __version__,
    }


def test_the_parameters_are_plain_text_in_the_png(model: Path):
    result = infer(build(model))
    assert b"tEXtparameters\x00{" in result.files[0].read_bytes()


def test_the_same_options_give_the_same_bytes_and_another_seed_another_picture(model: Path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        infer(build(model, seed=seed, output=f"{name}.png"))
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert not same(Path("a.png"), Path("c.png"))


def test_several_pictures_have_consecutive_seeds_and_equal_those_made_one_by_one(model: Path):
    result = infer(build(model, num_images=2, seed=5))
    assert result.files == [Path("output-001.png"), Path("output-002.png")]
    assert [parameters(file)["seed"] for file in result.files] == [5, 6]
    infer(build(model, seed=6, output="alone.png"))
    assert same(result.files[1], Path("alone.png"))
    assert not Path("output.png").exists()


def test_a_grid_shows_a_row_for_each_prompt_beside_the_single_pictures(model: Path):
    Path("p.txt").write_text("\ufeffa cat\n\n  a dog  \n", encoding="utf-8")
    result = infer(build(model, prompt=None, prompts_file="p.txt", num_images=3, grid=True, output="g.png"))
    assert [parameters(file)["prompt"] for file in result.files] == ["a cat"] * 3 + ["a dog"] * 3
    assert [parameters(file)["seed"] for file in result.files] == [0, 1, 2] * 2
    assert result.grid == Path("g.png")
    sheet, gap = pixels(result.grid), GRID_GAP
    assert sheet.size == (3 * 48 + 2 * gap, 2 * 32 + gap)
    corner = (2 * (48 + gap), 32 + gap)
    last = sheet.crop((*corner, corner[0] + 48, corner[1] + 32))
    assert ImageChops.difference(last, pixels(result.files[-1])).getbbox() is None
    about = parameters(result.grid)
    assert (about["prompts"], about["seeds"]) == (["a cat", "a dog"], [0, 1, 2])


def test_a_lora_changes_the_picture_by_its_scale_and_scale_zero_changes_nothing(model: Path, lora: Path):
    infer(build(model, output="base.png"))
    for name, scale in (("zero", ":0"), ("half", ":0.5"), ("full", "")):
        infer(build(model, lora=[f"{lora}{scale}"], output=f"{name}.png"))
    assert Path("zero.png").read_bytes() != Path("base.png").read_bytes()  # the metadata tells them apart
    assert same(Path("zero.png"), Path("base.png"))
    assert not same(Path("half.png"), Path("base.png"))
    assert not same(Path("full.png"), Path("half.png"))
    assert parameters(Path("half.png"))["loras"] == [{"path": str(lora), "scale": 0.5}]


def test_an_input_image_of_any_size_is_fitted_and_shows_through(model: Path):
    Image.new("RGB", (100, 50), "red").save("red.png")
    Image.new("RGB", (100, 50), "blue").save("blue.png")
    for name in ("red", "blue"):
        infer(build(model, input_image=f"{name}.png", denoising_strength=0.2, output=f"from_{name}.png"))
    assert pixels(Path("from_red.png")).size == (48, 32)
    assert not same(Path("from_red.png"), Path("from_blue.png"))
    assert parameters(Path("from_red.png"))["denoising_strength"] == 0.2


def test_a_black_mask_keeps_the_picture_whatever_the_prompt(model: Path):
    Image.new("RGB", (48, 32), "red").save("red.png")
    Image.new("L", (48, 32), "black").save("black.png")
    kept = {"input_image": "red.png", "inpaint_mask": "black.png"}
    infer(build(model, prompt="a cat", output="a.png", **kept))
    infer(build(model, prompt="a dog", output="b.png", **kept))
    assert same(Path("a.png"), Path("b.png"))
    assert parameters(Path("a.png"))["inpaint_mask"] == "black.png"


def test_what_is_left_open_comes_from_the_preset():
    resolved = resolve_model("tiny")
    options = InferOptions(model="tiny", prompt="p")
    filled = fill_in(options, resolved)
    expected = {name: resolved.defaults[name] for name in ("height", "width", "num_inference_steps", "cfg_scale")}
    assert vars(filled) == {**expected, "num_frames": None, "fps": None, "layers": None}
    given = fill_in(InferOptions(model="tiny", prompt="p", cfg_scale=1, num_inference_steps=3), resolved)
    assert given == replace(filled, cfg_scale=1.0, num_inference_steps=3)


def test_every_denoising_step_is_reported(model: Path):
    recorded = Recorded()
    infer(build(model, num_images=2), recorded)
    assert recorded.started == [("Denoising", 4)]
    assert recorded.advanced == [{"picture": "1/2"}] * 2 + [{"picture": "2/2"}] * 2
    assert recorded.ends >= 1


def test_tiles_are_of_no_consequence_for_a_picture_smaller_than_one(model: Path):
    infer(build(model, output="whole.png"))
    infer(build(model, output="tiled.png", tiled=True))
    assert same(Path("whole.png"), Path("tiled.png"))


@pytest.mark.parametrize(("dtype", "expected"), [(None, torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_precision_is_the_one_asked_for(model: Path, dtype: str | None, expected: torch.dtype):
    options = build(model, dtype=dtype)
    pipe = inference.load(options, resolve_model(str(model)), *inference.placement(options))
    assert {parameter.dtype for parameter in pipe.dit.parameters()} == {expected}


def test_a_gpu_that_is_not_there_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match="--device cuda:3 is asked for"):
        infer(build(model, device="cuda:3"))


def test_a_run_that_fails_while_drawing_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(self: Any, **inputs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dsctl_core.families.qwen_image.pipeline.QwenImagePipeline.__call__", broken)
    with pytest.raises(KeyboardInterrupt):
        infer(build(model, output="new/folder/a.png"))
    assert list(Path().iterdir()) == []


def test_a_full_disk_leaves_whole_pictures_only(model: Path, monkeypatch: pytest.MonkeyPatch):
    real, saved = Image.Image.save, []

    def filling(self: Image.Image, path: Path, **settings: Any) -> None:
        saved.append(path)
        if len(saved) == 2:
            Path(path).write_bytes(b"\x89PNG half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, path, **settings)

    monkeypatch.setattr(Image.Image, "save", filling)
    with pytest.raises(DsctlError, match="output-002.png could not be written: no space left"):
        infer(build(model, num_images=2))
    assert [path.name for path in Path().iterdir()] == ["output-001.png"]


def test_a_picture_that_was_there_survives_a_failed_run(model: Path, monkeypatch: pytest.MonkeyPatch):
    write_png(Path("output.png"), Image.new("RGB", (8, 8)), {"dsctl_version": "0"})  # of an earlier run
    precious = Path("output.png").read_bytes()

    def full(self: Image.Image, path: Path, **settings: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DsctlError, match="no space left"):
        infer(build(model))
    assert Path("output.png").read_bytes() == precious
    assert [path.name for path in Path().iterdir()] == ["output.png"]


@pytest.mark.parametrize(
    ("count", "with_grid", "names"),
    [(1, False, ["a.png"]), (1, True, ["a-001.png"]), (2, False, ["a-001.png", "a-002.png"])],
)
def test_pictures_are_numbered_when_there_are_several_or_a_grid(count: int, with_grid: bool, names: list[str]):
    assert output_files(Path("d/a.png"), count, with_grid) == [Path("d") / name for name in names]


def test_a_grid_is_filled_row_by_row_on_white():
    colours = ["red", "green", "blue"]
    sheet = grid([Image.new("RGB", (4, 2), colour) for colour in colours], columns=2)
    gap = GRID_GAP
    assert sheet.size == (8 + gap, 4 + gap)
    assert [sheet.getpixel(at) for at in ((0, 0), (4 + gap, 0), (0, 2 + gap), (4 + gap, 2 + gap), (4, 0))] == [
        (255, 0, 0),
        (0, 128, 0),
        (0, 0, 255),
        (255, 255, 255),
        (255, 255, 255),
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "has no prompt in it"),
        (b"\n  \n", "has no prompt in it"),
        (b"caf\xe9", "is not UTF-8 text"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_without_prompts_is_refused(content: bytes | None, problem: str):
    if content is not None:
        Path("p.txt").write_bytes(content)
    with pytest.raises(DsctlError, match=f"--prompts-file p.txt {problem}"):
        read_prompts(InferOptions(model="m", prompts_file="p.txt"))
