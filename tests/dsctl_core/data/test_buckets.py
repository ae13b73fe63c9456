"""Buckets: few sizes, every shape near one of them, and what was cut away is recorded."""

from __future__ import annotations

import math

import pytest
from PIL import Image

from dsctl_core.data import Fit, ImageCropAndResize, ImageToBucket, UnifiedDataset
from dsctl_core.data.buckets import aspect_ratio_buckets
from dsctl_core.errors import DsctlError, UsageError


@pytest.mark.parametrize("resolution", [64, 256, 512, 1024])
@pytest.mark.parametrize("factor", [8, 16, 32])
def test_buckets_divide_and_stay_within_the_area(resolution, factor):
    buckets = aspect_ratio_buckets(resolution, factor)
    assert (resolution, resolution) in buckets
    assert len(set(buckets)) == len(buckets) >= 3
    for width, height in buckets:
        assert width % factor == height % factor == 0
        assert width * height <= resolution**2
        assert 1 / 4 <= width / height <= 4
        assert (height, width) in buckets
        assert not any(o != (width, height) and o.width >= width and o.height >= height for o in buckets)


def test_the_usual_sizes_at_1024_are_there():
    assert {(1024, 1024), (1152, 896), (896, 1152), (1344, 768)} <= set(aspect_ratio_buckets(1024, 64))


@pytest.mark.parametrize("size", [(1000, 1000), (1920, 1080), (1080, 1920), (3000, 1000), (513, 2048), (700, 690)])
def test_the_bucket_has_the_nearest_shape(size):
    operator = ImageToBucket([512])
    chosen = operator.target_size(*size)
    shape = math.log(size[0] / size[1])
    distances = [abs(math.log(w / h) - shape) for w, h in operator.buckets[512]]
    assert abs(math.log(chosen[0] / chosen[1]) - shape) == min(distances)


def test_a_picture_goes_to_the_highest_resolution_that_it_fills():
    operator = ImageToBucket([1024, 512, 512])
    assert operator.resolutions == (512, 1024)
    assert operator.target_size(2000, 2000) == operator.target_size(1024, 1024) == (1024, 1024)
    assert operator.target_size(1023, 1023) == (512, 512)
    assert operator.target_size(300, 300) == (512, 512)


@pytest.mark.parametrize(
    ("resolutions", "problem"), [((500,), "500 is not a positive multiple of 16"), ((), "no bucket")]
)
def test_a_resolution_that_does_not_divide_is_refused(resolutions, problem):
    with pytest.raises(UsageError, match=problem) as caught:
        ImageToBucket(resolutions)
    assert caught.value.hint


def test_a_picture_smaller_than_a_patch_is_refused():
    with pytest.raises(DsctlError, match="the picture is 10x10 pixels"):
        ImageToBucket([64]).target_size(10, 10)


@pytest.mark.parametrize(
    ("operator", "fit"),
    [
        (ImageCropAndResize(64, 64), Fit((200, 100), (64, 64), 0.64, (50, 0, 150, 100))),
        (ImageCropAndResize(), Fit((200, 100), (192, 96), 1.0, (4, 2, 196, 98))),
        (ImageToBucket([64]), Fit((200, 100), (80, 48), 0.48, (100 / 6, 0, 1100 / 6, 100))),
    ],
)
def test_the_crop_and_the_scale_are_recorded_with_the_sample(tmp_path, operator, fit):
    picture = Image.linear_gradient("L").resize((200, 100)).convert("RGB")
    picture.save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("image,prompt\na.png,x\n")
    dataset = UnifiedDataset(
        tmp_path, main_data_operator=UnifiedDataset.default_image_operator(tmp_path, resize=operator)
    )
    recorded = dataset[0]["_fit"]["image"]
    assert (recorded.original, recorded.size) == (fit.original, fit.size)
    assert recorded.scale == pytest.approx(fit.scale)
    assert recorded.box == pytest.approx(fit.box)
    assert dataset[0]["image"].size == dataset.preview(0, "image") == fit.size
    left, top, right, bottom = recorded.box
    assert ((right - left) * recorded.scale, (bottom - top) * recorded.scale) == pytest.approx(fit.size)
