"""Inspection and duplicates: a picture is known again at another size, and pictures that differ are not."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image

from dsctl_core.assets import assets_path
from dsctl_core.data import LoadImage
from dsctl_core.data.duplicates import same_bytes, same_pictures
from dsctl_core.data.inspection import FileFacts, inspect
from tests.dsctl_core.data.test_video import write


def scene(seed: int, size: tuple[int, int] = (400, 300)) -> Image.Image:
    """Return large shapes with fine grain, as a photograph has."""
    draw = random.Random(seed)
    shapes = Image.frombytes("RGB", (9, 7), draw.randbytes(189)).resize(size, Image.Resampling.BICUBIC)
    grain = Image.frombytes("RGB", (size[0] // 2, size[1] // 2), draw.randbytes(size[0] // 2 * (size[1] // 2) * 3))
    return Image.blend(shapes, grain.resize(size), 0.1)


def facts(paths: list[Path]) -> dict[Path, FileFacts]:
    found = {path: inspect(path, videos=False) for path in paths}
    assert all(isinstance(fact, FileFacts) for fact in found.values())
    return found


def test_a_picture_is_known_again_at_other_sizes_and_qualities(tmp_path):
    paths = []
    for seed in range(20):
        picture = scene(seed)
        for number, (size, options) in enumerate(
            [((400, 300), {}), ((200, 150), {}), ((600, 450), {"quality": 95}), ((133, 100), {"quality": 60})]
        ):
            paths.append(tmp_path / f"{seed}-{number}.jpg")
            picture.resize(size, Image.Resampling.LANCZOS).save(paths[-1], **options)
    pairs = [(path.stem.split("-")[0], earlier.stem.split("-")[0]) for path, earlier in same_pictures(facts(paths))]
    assert all(one == other for one, other in pairs)
    assert len(pairs) >= 57  # of 60


def test_pictures_that_differ_are_not_taken_for_one(tmp_path):
    paths = []
    for seed in range(60):
        paths.append(tmp_path / f"{seed}.png")
        scene(1000 + seed, (96, 72)).save(paths[-1])
    for colour in range(0, 256, 16):  # flat pictures have one outline
        paths.append(tmp_path / f"flat-{colour}.png")
        Image.new("RGB", (64, 48), (colour, 255 - colour, 90)).save(paths[-1])
    assert list(same_pictures(facts(paths))) == []


@pytest.mark.parametrize("name", ["robot", "blueprint"])
def test_the_pictures_that_come_with_the_package_are_all_different(name):
    paths = sorted(assets_path(f"datasets/{name}").glob("*.png"))
    assert len(paths) >= 10
    assert list(same_pictures(facts(paths))) == list(same_bytes(facts(paths))) == []


def test_the_same_bytes_are_found_whatever_the_name(tmp_path):
    for name in ("a.png", "b.png"):
        scene(1).save(tmp_path / name)
    (tmp_path / "c.jpg").write_bytes((tmp_path / "a.png").read_bytes())
    scene(1).save(tmp_path / "d.jpg")
    found = facts([tmp_path / name for name in ("a.png", "b.png", "c.jpg", "d.jpg")])
    pairs = [(path.name, earlier.name) for path, earlier in same_bytes(found)]
    assert pairs == [("b.png", "a.png"), ("c.jpg", "a.png")]
    assert [(path.name, earlier.name) for path, earlier in same_pictures(found)] == [("d.jpg", "a.png")]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("size", [(300, 299), (64, 48), (400, 400)])
def test_the_size_is_that_of_the_picture_as_it_is_loaded(tmp_path, suffix, orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    scene(3, size).save(path, exif=exif)
    found = inspect(path, videos=False)
    assert found.size == LoadImage()(path).size == LoadImage().preview(path)
    assert (len(found.colors), found.file_bytes) == (192, path.stat().st_size)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "I;16", "1"])
def test_every_kind_of_pixels_has_a_look(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture = scene(5)
    if mode == "I;16":
        picture = picture.convert("L").convert("I").point(lambda value: value * 257)
    picture.convert(mode).save(path)
    found = inspect(path, videos=False)
    assert isinstance(found, FileFacts)
    assert len(set(found.colors)) > 10


def test_a_video_s_frames_are_all_decoded_and_timed(tmp_path):
    path = write(tmp_path / "a.mp4", frames=12)
    found = inspect(path, videos=True)
    assert (found.size, found.frames, found.is_video) == ((64, 48), 12, True)
    assert found.times == pytest.approx([number / 10 for number in range(12)])
    assert found.end == pytest.approx(1.2)
    assert inspect(path, videos=False).problem.endswith("is a video, not a picture")
    gif = inspect(write(tmp_path / "a.gif", frames=5), videos=True)
    assert (gif.is_video, gif.frames) == (True, 5)
