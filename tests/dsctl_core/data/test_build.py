"""From options to a dataset: sizes, captions and videos as the family takes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from PIL import Image

from dsctl_core.data import ImageCropAndResize, ImageToBucket
from dsctl_core.data.build import build_dataset, build_resize
from dsctl_core.errors import DsctlError
from dsctl_core.families import families
from dsctl_core.families.resolve import resolve_model
from dsctl_core.options import DataOptions, ReadingOptions
from tests.dsctl_core.data.test_video import write

PICTURES = next(iter(families().values()))
VIDEOS = dataclasses.replace(PICTURES, time_division=(4, 1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A video and a picture with a table whose columns have names of their own."""
    base = tmp_path / "data"
    base.mkdir()
    write(base / "a.mp4", frames=12, size=(96, 64))
    Image.new("RGB", (96, 64)).save(base / "b.png")
    (base / "metadata.csv").write_text("clip,words\na.mp4,a fox\n")
    return base


def options(folder: Path, **settings: object) -> DataOptions:
    return DataOptions(dataset_base_path=folder, column="image=clip,prompt=words", **settings)


def test_a_family_for_videos_gets_frames_by_its_own_rule(folder):
    row = build_dataset(options(folder, num_frames=9, caption_prefix="sks"), VIDEOS, {})[0]
    assert (row["prompt"], len(row["image"]), row["image"][0].size) == ("sks a fox", 9, (96, 64))
    assert row["_fit"]["image"][8].size == (96, 64)
    assert build_dataset(options(folder, num_frames=9, fps=9), VIDEOS, {}).preview(0, "image") == (96, 64, 9)
    with pytest.raises(DsctlError, match="10 frames is not 4"):
        build_dataset(options(folder, num_frames=10), VIDEOS, {})


def test_the_model_s_own_number_of_frames_is_the_default(folder):
    assert len(build_dataset(options(folder), VIDEOS, {"num_frames": 5})[0]["image"]) == 5
    with pytest.raises(DsctlError, match="the clip has 12 frames, but 81 are needed"):
        build_dataset(options(folder), VIDEOS, {})[0]
    assert len(build_dataset(options(folder, short_clips="shorten"), VIDEOS, {})[0]["image"]) == 9


def test_a_family_for_pictures_refuses_a_video(folder):
    with pytest.raises(DsctlError, match=r"row 1 \(line 2\), image 'a.mp4': .*a.mp4 is a video, not a picture"):
        build_dataset(options(folder), PICTURES, {})[0]


def test_files_outside_are_allowed_by_option(folder):
    (folder / "metadata.csv").write_text("clip,words\n../data/b.png,x\n")
    assert build_dataset(options(folder, allow_outside=True), PICTURES, {})[0]["image"].size == (96, 64)
    with pytest.raises(DsctlError, match="leads out of the dataset folder"):
        inner = folder / "inner"
        inner.mkdir()
        (inner / "metadata.csv").write_text("clip,words\n../b.png,x\n")
        build_dataset(options(inner), PICTURES, {})[0]


def test_sizes_follow_the_options_and_then_the_model():
    assert isinstance(build_resize(ReadingOptions(bucket_resolutions="512,1024"), 16, None), ImageToBucket)
    for given, native, wanted in [
        ({}, None, (None, None, 1024 * 1024)),
        ({}, 9216, (None, None, 9216)),
        ({"max_pixels": 4096}, 9216, (None, None, 4096)),
        ({"height": 64, "width": 32}, 9216, (64, 32, None)),
    ]:
        resize = build_resize(ReadingOptions(**given), 16, native)
        assert isinstance(resize, ImageCropAndResize)
        assert (resize.height, resize.width, resize.max_pixels) == wanted


@pytest.mark.parametrize("size", [(1008, 672), (672, 1008), (6000, 4000), (300, 100), (97, 97), (96, 96), (40, 64)])
def test_photographs_are_trained_at_the_area_of_the_embedded_preset(folder: Path, size: tuple[int, int]):
    Image.new("RGB", size, "red").save(folder / "b.png")
    (folder / "metadata.csv").write_text("clip,words\nb.png,x\n")
    resolved = resolve_model("tiny")
    width, height = build_dataset(options(folder), resolved.family, resolved.defaults)[0]["image"].size
    area = resolved.defaults["height"] * resolved.defaults["width"]
    assert width * height <= area
    assert (width % 16, height % 16) == (0, 0)
    if size[0] * size[1] > area and min(size) * 2 >= max(size):  # of a usual shape
        assert width * height > area / 2
    if size[0] * size[1] <= area:
        assert (width, height) == (size[0] // 16 * 16, size[1] // 16 * 16)


@pytest.mark.parametrize("given", ["512,1024", ["512", "1024"], [512, 1024]])
def test_resolutions_can_be_written_as_text_and_as_numbers(given):
    assert ReadingOptions(bucket_resolutions=given).resolutions == (512, 1024)
