"""`infer` with a model that follows clips: what is named reaches the model, and one line for what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dsctl_core.commands.infer import infer
from dsctl_core.data import LoadVideo
from dsctl_core.errors import DsctlError
from dsctl_core.media.clip import Clip
from dsctl_core.media.clip_file import write_clip
from dsctl_core.media.made_file import about_made
from dsctl_core.options import InferOptions
from tests.tiny_models import write_tiny_wan, write_tiny_wan_vace


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"vace": write_tiny_wan_vace(folder / "vace"), "t2v": write_tiny_wan(folder / "t2v")}


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of nine frames at 8 frames a second, of masks too, and pictures."""
    folder = tmp_path_factory.mktemp("materials")
    for name, count, size in (("clip", 9, (64, 32)), ("mask", 9, (64, 32)), ("short", 3, (64, 32))):
        write_clip(folder / f"{name}.mp4", Clip(tuple(noisy(number, size) for number in range(count)), 8), {})
    write_clip(folder / "wide.mp4", Clip(tuple(noisy(number, (96, 32)) for number in range(9)), 8), {})
    for number, size in enumerate(((50, 30), (30, 50))):
        noisy(number, size).save(folder / f"r{number}.png")
    Image.new("L", (64, 32), "white").save(folder / "still.png")
    Image.new("L", (32, 32), "white").save(folder / "square.png")
    (folder / "text.txt").write_text("no picture")
    return folder


def noisy(seed: int, size: tuple[int, int]) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def build(model: Path, **values: Any) -> InferOptions:
    small = {"height": 32, "width": 64, "num_inference_steps": 1, "device": "cpu", "prompt": "a fox", "fps": 8}
    return InferOptions(**{"model": str(model), **small, **values})


def noted(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return a list to which the arguments of every call of the pipeline are added."""
    asked: list[dict[str, Any]] = []

    def call(pipe: Any, **inputs: Any) -> Clip:
        asked.append(inputs)
        return Clip((Image.new("RGB", (32, 32)),) * 2, inputs["fps"])

    monkeypatch.setattr("dsctl_core.families.wan_vace.pipeline.WanVacePipeline.__call__", call)
    return asked


def test_what_is_named_reaches_the_model_in_its_order_and_stands_in_the_file(
    models: dict[str, Path], materials: Path, monkeypatch: pytest.MonkeyPatch
):
    pictures = [materials / "r1.png", materials / "r0.png"]
    named = {"vace_video": materials / "clip.mp4", "vace_video_mask": materials / "mask.mp4"}
    more = {"vace_reference_image": pictures, "vace_scale": "0.5,2", "num_frames": 5}
    infer(build(models["vace"], **named, **more, output="a.mp4"))
    about = about_made(Path("a.mp4"))
    assert about["vace_video"] == str(named["vace_video"])
    assert about["vace_reference_image"] == [str(path) for path in pictures]
    assert about["vace_scale"] == [0.5, 2]
    assert len(LoadVideo(None)(Path("a.mp4"))) == 5
    asked = noted(models, monkeypatch)
    infer(build(models["vace"], **named, **more, output="b.mp4"))
    given = asked[0]
    assert [picture.size for picture in given["vace_reference_image"]] == [(30, 50), (50, 30)]
    assert given["vace_scale"] == (0.5, 2)
    for name, path in named.items():
        expected = LoadVideo(None)(path)[:5]
        assert [np.array_equal(a, b) for a, b in zip(given[name], expected, strict=True)] == [True] * 5
    infer(build(models["vace"], output="c.mp4"))
    assert not {name for name in asked[1] if name.startswith("vace_")}


def test_the_clip_has_the_shape_and_the_frames_of_the_one_that_it_follows(
    models: dict[str, Path], materials: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = noted(models, monkeypatch)
    open_sizes = {"height": None, "width": None}
    infer(build(models["vace"], vace_video=materials / "wide.mp4", **open_sizes, output="a.mp4"))
    assert asked[0]["num_frames"] == 9 == len(asked[0]["vace_video"])
    assert asked[0]["width"] == pytest.approx(3 * asked[0]["height"], rel=0.05)
    still = {"vace_video": materials / "clip.mp4", "vace_video_mask": materials / "still.png"}
    infer(build(models["vace"], **still, output="b.mp4"))
    assert asked[1]["vace_video_mask"].size == (64, 32)
    start = {"input_video": materials / "wide.mp4", "denoising_strength": 0.5, "num_frames": 5}
    infer(build(models["vace"], **still, **start, output="c.mp4"))
    assert len(asked[2]["vace_video"]) == len(asked[2]["input_video"]) == 5


def test_a_scale_of_zero_gives_the_clip_of_no_control(models: dict[str, Path], materials: Path):
    named = {"vace_video": materials / "clip.mp4", "vace_video_mask": materials / "mask.mp4", "num_frames": 5}
    for name, more in (("on", named), ("off", {**named, "vace_scale": "0"}), ("none", {"vace_scale": "0"})):
        infer(build(models["vace"], **{"num_frames": 5, **more}, output=f"{name}.mp4"))
    pixels = {name: np.stack(LoadVideo(None)(Path(f"{name}.mp4"))) for name in ("on", "off", "none")}
    assert np.array_equal(pixels["off"], pixels["none"])
    assert not np.array_equal(pixels["on"], pixels["off"])


WRONG: dict[str, tuple[str, dict[str, str], str, str]] = {
    "another model": ("t2v", {"vace_video": "clip.mp4"}, "--vace-video has no effect on Wan, which follows", "a VACE"),
    "references on another model": ("t2v", {"vace_reference_image": "r0.png"}, "--vace-reference-image has no", "VACE"),
    "a mask of another size": (
        "vace",
        {"vace_video": "clip.mp4", "vace_video_mask": "square.png"},
        "--vace-video-mask is 32x32, but --vace-video is 64x32",
        "give a mask as large as the clip",
    ),
    "a mask clip of another size": (
        "vace",
        {"vace_video": "clip.mp4", "vace_video_mask": "wide.mp4"},
        "--vace-video-mask is 96x32, but --vace-video is 64x32",
        "give a mask as large as the clip",
    ),
    "too short a mask": (
        "vace",
        {"vace_video": "clip.mp4", "vace_video_mask": "short.mp4"},
        "--vace-video-mask: .*the clip has 3 frames at 8 frames a second, but 9 are needed",
        "give --vace-video-mask another clip",
    ),
    "text as video": ("vace", {"vace_video": "text.txt"}, "--vace-video: .*text.txt is not a video", "another clip"),
    "text as reference": (
        "vace",
        {"vace_reference_image": "text.txt"},
        "--vace-reference-image: .*text.txt is not a picture",
        "give --vace-reference-image another picture",
    ),
}


@pytest.mark.parametrize(("model", "names", "said", "hint"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_before_the_model_is_loaded(
    models: dict[str, Path],
    materials: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    names: dict[str, str],
    said: str,
    hint: str,
):
    monkeypatch.setattr("dsctl_core.commands.infer.load", lambda *_: pytest.fail("the model was loaded"))
    paths: dict[str, Any] = {name: materials / file for name, file in names.items()}
    if "vace_reference_image" in paths:
        paths["vace_reference_image"] = [paths["vace_reference_image"]]
    with pytest.raises(DsctlError, match=said) as caught:
        infer(build(models[model], **paths, output="a.mp4"))
    assert hint in str(caught.value.hint)
    assert "\n" not in caught.value.problem


def test_another_number_of_scales_is_refused(models: dict[str, Path]):
    with pytest.raises(DsctlError, match="3 vace scales for 2 vace blocks") as caught:
        infer(build(models["vace"], num_frames=5, vace_scale="1,0.5,0.2", output="a.mp4"))
    assert caught.value.hint == "give one for all, or 2, one for each block"
    assert not Path("a.mp4").exists()
