"""`infer` with models of clips: files that play, from text, pictures and clips; and one line for what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dsctl_core.commands.infer import infer
from dsctl_core.data import LoadVideo
from dsctl_core.data.sizes import clip_size
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.resolve import resolve_model
from dsctl_core.families.wan.pipeline import WanPipeline
from dsctl_core.media.clip import Clip
from dsctl_core.media.clip_file import write_clip
from dsctl_core.media.made_file import about_made
from dsctl_core.options import InferOptions
from dsctl_core.version import __version__
from tests.tiny_models import write_tiny_wan


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: write_tiny_wan(folder / kind, kind=kind) for kind in ("t2v", "i2v-a14b", "ti2v")}


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, a mask, and a clip of nine frames at 8 frames a second."""
    folder = tmp_path_factory.mktemp("materials")
    for number, name in enumerate(("first.png", "last.png")):
        noisy(number).save(folder / name)
    Image.new("L", (64, 32), "black").save(folder / "keep.png")
    write_clip(folder / "clip.mp4", Clip(tuple(noisy(number) for number in range(9)), 8), {})
    (folder / "cut.mp4").write_bytes((folder / "clip.mp4").read_bytes()[:2000])
    (folder / "text.mp4").write_text("no clip")
    return folder


def noisy(seed: int, size: tuple[int, int] = (64, 32)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def build(model: Path | str, **values: Any) -> InferOptions:
    small = {"height": 32, "width": 64, "num_frames": 5, "num_inference_steps": 1, "device": "cpu", "prompt": "a fox"}
    return InferOptions(**{"model": str(model), **small, **values})


def frames(path: Path) -> list[np.ndarray]:
    """Return the frames of a clip of any format as arrays (H, W, 3)."""
    if path.suffix == ".mp4":
        return [np.asarray(frame) for frame in LoadVideo(None)(path)]
    with Image.open(path) as image:
        return [
            np.asarray((image.seek(number), image.convert("RGB"))[1])
            for number in range(image.n_frames)  # type: ignore[attr-defined]
        ]


@pytest.mark.parametrize("name", ["a.mp4", "new/a.gif", "a.webp"])
def test_a_clip_is_a_file_that_plays_and_carries_what_made_it(models: dict[str, Path], name: str):
    asked = {"prompt": "a caf\u00e9 \u732b", "negative_prompt": "b", "seed": 7, "cfg_scale": 2.5}
    result = infer(build(models["t2v"], **asked, output=name, fps=10))
    assert (result.files, result.clips) == ([Path(name)], True)
    shown = frames(Path(name))
    assert (len(shown), shown[0].shape) == (5, (32, 64, 3))
    assert about_made(Path(name)) == {
        **asked,
        "num_inference_steps": 1,
        "solver": "unipc",
        "height": 32,
        "width": 64,
        "num_frames": 5,
        "fps": 10,
        "model": str(models["t2v"]),
        "loras": [],
        "dsctl_version": __version__,
    }


def test_the_same_options_give_the_same_clip_again_and_tiles_nearly_the_same(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    drawn: list[np.ndarray] = []  # before a codec, which makes much of a last bit

    def call(*given: Any, **inputs: Any) -> Clip:
        clip = draw(*given, **inputs)
        drawn.append(np.stack([np.asarray(frame) for frame in clip.frames]).astype(int))
        return clip

    draw = WanPipeline.__call__
    monkeypatch.setattr(WanPipeline, "__call__", call)
    for name, more in (("a", {}), ("b", {}), ("tiled", {"tiled": True})):
        infer(build(models["t2v"], width=320, output=f"{name}.mp4", **more))  # wider than a tile
    assert about_made(Path("a.mp4")) == about_made(Path("b.mp4"))
    whole, again, tiled = drawn
    assert np.abs(whole - again).max() <= 1
    assert 0 < np.abs(whole - tiled).mean() < np.abs(whole - whole.mean()).mean() / 5


def test_several_clips_are_numbered_and_a_grid_shows_them_at_once(models: dict[str, Path]):
    Path("p.txt").write_text("a cat\na dog\n", encoding="utf-8")
    result = infer(build(models["t2v"], prompt=None, prompts_file="p.txt", grid=True, output="g.gif"))
    assert [path.name for path in result.files] == ["g-001.gif", "g-002.gif"]
    assert [about_made(path)["prompt"] for path in result.files] == ["a cat", "a dog"]
    sheet, single = frames(Path("g.gif")), frames(result.files[1])
    assert (len(sheet), sheet[0].shape) == (5, (32, 2 * 64 + 4, 3))
    assert np.abs(sheet[3][:, 68:].astype(int) - single[3]).mean() < 10  # of two palettes
    assert about_made(Path("g.gif"))["prompts"] == ["a cat", "a dog"]


def test_what_is_left_open_is_the_model_s_own(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    asked: list[dict[str, Any]] = []

    def call(pipe: Any, **inputs: Any) -> Clip:
        asked.append(inputs)
        return Clip((Image.new("RGB", (32, 32)),) * 2, inputs["fps"])

    monkeypatch.setattr("dsctl_core.families.wan.pipeline.WanPipeline.__call__", call)
    result = infer(InferOptions(model=str(models["t2v"]), prompt="a", device="cpu"))
    own = resolve_model(str(models["t2v"])).defaults
    assert result.files == [Path("output.mp4")]
    assert asked[0].items() >= {name: own[name] for name in ("height", "width", "num_frames", "fps")}.items()


def test_one_frame_is_a_picture(models: dict[str, Path]):
    assert infer(build(models["t2v"], num_frames=1)).files == [Path("output.png")]
    with Image.open("output.png") as picture:
        assert picture.size == (64, 32)
    with pytest.raises(UsageError, match="--fps has no effect on a single frame that is written as PNG"):
        infer(build(models["t2v"], num_frames=1, fps=8))


def test_given_frames_reach_the_model_and_their_shape_the_clip(models: dict[str, Path], materials: Path):
    asked: dict[str, Any] = {"input_image": materials / "first.png", "height": None, "width": None, "num_frames": 5}
    pixels = resolve_model(str(models["i2v-a14b"])).defaults
    width, height = clip_size((64, 32), pixels["height"] * pixels["width"], 16)
    assert (width, height) == (1344, 672)
    assert width * height <= pixels["height"] * pixels["width"]
    assert clip_size((832, 480), 480 * 832, 16) == (832, 480)
    with pytest.raises(DsctlError, match="a frame of 10000x1 pixels is too narrow"):
        clip_size((10000, 1), 480 * 832, 16)
    both = {**asked, "height": 32, "width": 64, "end_image": materials / "last.png"}
    for name, values in (("one", {**both, "end_image": None}), ("two", both)):
        infer(build(models["i2v-a14b"], **values, output=f"{name}.mp4"))
    assert frames(Path("one.mp4"))[-1].tolist() != frames(Path("two.mp4"))[-1].tolist()
    about = about_made(Path("two.mp4"))
    assert {name: about[name] for name in ("input_image", "end_image")} == {
        "input_image": str(materials / "first.png"),
        "end_image": str(materials / "last.png"),
    }
    assert "denoising_strength" not in about


def test_a_clip_is_changed_by_its_strength_and_kept_where_a_mask_is_black(models: dict[str, Path], materials: Path):
    start = {"input_video": materials / "clip.mp4", "num_frames": None, "fps": 8, "height": None, "width": None}
    asked: list[Any] = []
    model = build(models["t2v"], **start, denoising_strength=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "dsctl_core.families.wan.pipeline.WanPipeline.__call__",
            lambda pipe, **inputs: (asked.append(inputs), Clip((Image.new("RGB", (32, 32)),), 8))[1],
        )
        infer(model)
    assert (asked[0]["num_frames"], asked[0]["fps"], len(asked[0]["input_video"])) == (9, 8, 9)
    assert (asked[0]["width"], asked[0]["height"]) == (880, 432)
    assert {frame.size for frame in asked[0]["input_video"]} == {(880, 432)}

    sized = {**start, "height": 32, "width": 64, "num_inference_steps": 2}
    for name, strength in (("little", 0.02), ("much", 1.0)):
        mask = {"inpaint_mask": materials / "keep.png"} if strength == 1.0 else {}
        infer(build(models["t2v"], **sized, denoising_strength=strength, **mask, output=f"{name}.mp4"))
    infer(build(models["t2v"], **{**sized, "prompt": "a dog"}, inpaint_mask=materials / "keep.png", output="dog.mp4"))
    assert len(frames(Path("little.mp4"))) == 9
    # All of it is kept, whatever the prompt; where tensors lie in memory can change a rounding, and so a grey level.
    kept, dog, little = (np.stack(frames(Path(f"{name}.mp4"))).astype(int) for name in ("much", "dog", "little"))
    assert np.abs(kept - dog).mean() < 0.5 < np.abs(kept - little).mean()
    assert about_made(Path("dog.mp4"))["inpaint_mask"] == str(materials / "keep.png")


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("t2v", {"output": "a.png"}, "--output is 'a.png', which holds no clip, and Wan makes clips", ".mp4"),
    ("t2v", {"output": "a.gif", "fps": 60}, "a.gif can show at most 50 frames a second, not 60", ".mp4"),
    ("t2v", {"num_frames": 6}, r"6 frames is not 4 \* n \+ 1", "5 and 9"),
    ("t2v", {"height": 40}, "height 40 is not a positive multiple of 16", "32 and 48"),
    ("t2v", {"input_image": "first.png"}, "--input-image has no effect on .*, which takes no first frame", "--input-v"),
    ("ti2v", {"end_image": "last.png"}, "--end-image has no effect on .*, which takes no last frame", "first and last"),
    ("t2v", {"denoising_strength": 0.5, "input_image": "first.png"}, "--input-image has no effect", "--input-video"),
    (
        "ti2v",
        {"denoising_strength": 0.5, "input_image": "first.png"},
        "--denoising-strength has no effect",
        "--input-v",
    ),
    ("t2v", {"edit_image": ["first.png"]}, "--edit-image has no effect on Wan", "models"),
    ("t2v", {"embedded_guidance": 3.0}, "--embedded-guidance has no effect on Wan", "--cfg-scale"),
    ("i2v-a14b", {}, "--input-image is missing: .* makes clips from their first frame", "--input-image FILE"),
    ("wan2.1-i2v-14b-480p", {}, "--input-image is missing: wan2.1-i2v-14b-480p makes", "--input-image FILE"),
    (
        "wan2.1-flf2v-14b-720p",
        {"input_image": "first.png"},
        "--end-image is missing: wan2.1-flf2v-14b-720p makes clips from their last frame",
        "--end-image FILE",
    ),
    ("i2v-a14b", {"input_image": "nowhere.png"}, "--input-image: .*nowhere.png", "another picture"),
    ("t2v", {"input_video": "text.mp4"}, "--input-video: .*text.mp4 is not a video, or is damaged", "another clip"),
    ("t2v", {"input_video": "cut.mp4"}, "--input-video: .*cut.mp4", "another clip"),
    ("t2v", {"input_video": "nowhere.mp4"}, "--input-video: .*nowhere.mp4", "another clip"),
    ("t2v", {"input_video": "clip.mp4", "num_frames": 13, "fps": 8}, "the clip has 9 frames at 8", "another clip"),
    (
        "t2v",
        {"input_video": "clip.mp4", "fps": 8, "inpaint_mask": "small.png"},
        "--inpaint-mask is 16x16, but --input-video is 64x32",
        "as large as the clip",
    ),
]


@pytest.mark.parametrize(("kind", "values", "problem", "hint"), REFUSED, ids=[f"{row[0]}-{row[2]}" for row in REFUSED])
def test_what_does_not_fit_is_one_line_before_any_weights_are_loaded(
    models: dict[str, Path], materials: Path, kind: str, values: dict[str, Any], problem: str, hint: str
):
    Image.new("L", (16, 16)).save(materials / "small.png")
    names = ("input_image", "end_image", "input_video", "inpaint_mask")
    given = {name: materials / value if name in names else value for name, value in values.items()}
    given |= {"edit_image": [materials / each for each in values["edit_image"]]} if "edit_image" in values else {}
    given |= {"denoising_strength": 0.5} if "input_video" in values else {}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DsctlError, match=problem) as caught:
        patch.setattr("dsctl_core.commands.infer.load", None)
        infer(build(models.get(kind, kind), **given))
    assert hint in (caught.value.hint or "")
    assert "\n" not in caught.value.problem
    assert list(Path().iterdir()) == []
