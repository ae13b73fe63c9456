"""Pictures: every mode and orientation is decoded right, and every damaged file is named."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dsctl_core.data import ImageCropAndResize, LoadImage
from dsctl_core.errors import DsctlError, UsageError
from tests.cases import try_each

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(width * height * 3))


def corners(image: Image.Image) -> list[tuple[int, int, int]]:
    right, bottom = image.width - 1, image.height - 1
    return [image.getpixel(at) for at in [(0, 0), (right, 0), (right, bottom), (0, bottom)]]


UNDONE_BY = [None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM]
UNDONE_BY += [Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90, Image.Transpose.TRANSVERSE]
UNDONE_BY += [Image.Transpose.ROTATE_270]  # how a picture is stored that EXIF orientation 1, 2, ... 8 turns upright


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_a_picture_is_upright_as_its_exif_says(tmp_path, suffix):
    upright = Image.new("RGB", (32, 48))
    for at, colour in [((0, 0), RED), ((16, 0), GREEN), ((16, 24), BLUE), ((0, 24), WHITE)]:
        upright.paste(colour, (*at, at[0] + 16, at[1] + 24))

    def check(orientation, turn):
        stored = upright if turn is None else upright.transpose(turn)
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"lossless": True} if suffix == "webp" else {"quality": 100} if suffix == "jpg" else {}
        path = saved(tmp_path / f"{orientation}.{suffix}", stored, exif=exif, **options)
        image = LoadImage()(path)
        assert image.size == LoadImage().preview(path) == (32, 48)
        for got, wanted in zip(corners(image), [RED, GREEN, BLUE, WHITE], strict=True):
            assert max(abs(a - b) for a, b in zip(got, wanted, strict=True)) <= 3

    try_each(enumerate(UNDONE_BY, 1), check, count=8)


def transparent(mode: str) -> Image.Image:
    """A picture whose left half is opaque black and whose right half is transparent, with black behind it."""
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 16, 32))
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGB"])
def test_transparency_is_kept_when_it_is_asked_for(tmp_path, mode):
    path = saved(tmp_path / "a.png", transparent("RGBA").convert(mode))
    image = LoadImage(convert_RGBA=True)(path)
    assert (image.mode, image.getpixel((5, 5))) == ("RGBA", (0, 0, 0, 255))
    assert image.getpixel((25, 5))[3] == (255 if mode == "RGB" else 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "RGB"])
def test_what_is_transparent_becomes_white(tmp_path, mode):
    if mode in ("P", "L", "RGB"):  # one colour of the palette or of the picture stands for transparent
        image, key = Image.new(mode, (32, 32), 0), {"P": 1, "L": 9, "RGB": (9, 9, 9)}[mode]
        if mode == "P":
            image.putpalette([0, 0, 0, 9, 9, 9])
        image.paste(key, (16, 0, 32, 32))
        path = saved(tmp_path / "a.png", image, transparency=key)
    else:
        suffix = "tiff" if mode == "PA" else "png"
        path = saved(tmp_path / f"a.{suffix}", transparent("RGBA" if mode == "PA" else mode))
    image = LoadImage()(path)
    assert image.mode == "RGB"
    assert (image.getpixel((0, 0)), image.getpixel((31, 0))) == (BLACK, WHITE)


def test_half_transparent_is_blended_with_white(tmp_path):
    path = saved(tmp_path / "a.png", Image.new("RGBA", (16, 16), (255, 0, 0, 128)))
    assert LoadImage()(path).getpixel((0, 0)) == (255, 127, 127)


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    def check(suffix, value, wanted):
        path = saved(tmp_path / f"{value}.{suffix}", Image.new("I;16", (16, 16), value))
        assert LoadImage()(path).getpixel((3, 3)) == (wanted, wanted, wanted)

    values = [(0, 0), (257, 1), (32768, 128), (65535, 255), (300, 1)]
    try_each([(suffix, *each) for suffix in ("png", "tiff", "pgm") for each in values], check, count=15)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_unknown_range_are_refused(tmp_path, mode):
    path = saved(tmp_path / "a.tiff", Image.new(mode, (16, 16), 1))
    with pytest.raises(DsctlError, match=r"a.tiff has pixels of mode .[IF].") as caught:
        LoadImage()(path)
    assert "8-bit" in caught.value.hint


def test_other_modes_are_decoded_to_their_colours(tmp_path):
    paths = {
        "cmyk": saved(tmp_path / "cmyk.jpg", Image.new("CMYK", (16, 16), (255, 0, 0, 0)), quality=100),
        "palette": saved(tmp_path / "p.gif", Image.new("RGB", (16, 16), GREEN).convert("P")),
        "bits": saved(tmp_path / "b.png", Image.new("1", (16, 16), 1)),
        "wrong suffix": saved(tmp_path / "png.jpg", Image.new("RGB", (16, 16), BLUE), format="PNG"),
    }
    wanted = {"cmyk": (0, 255, 255), "palette": GREEN, "bits": WHITE, "wrong suffix": BLUE}
    for kind, path in paths.items():
        got = LoadImage()(path).getpixel((5, 5))
        assert max(abs(a - b) for a, b in zip(got, wanted[kind], strict=True)) <= 1, kind


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    path = saved(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], lossless=True)
    assert LoadImage()(path).getpixel((5, 5)) == RED


HEIC = b"\0\0\0\x18ftypheic" + b"\0" * 40
NOT_PICTURES = {
    "zero bytes": (b"", "is empty (0 bytes)", "download the file again"),
    "text": (b"hello there", "is not a picture", "download the file again"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer", "git lfs pull"),
    "web page": (b"\n<!DOCTYPE html><html>404", "is a web page", "download the picture itself"),
    "heic": (HEIC, "is a HEIC picture that is damaged or cut off", "download the file again"),
}


@pytest.mark.parametrize("kind", NOT_PICTURES)
def test_a_file_that_is_no_picture_is_named_with_what_it_is(tmp_path, kind):
    data, problem, hint = NOT_PICTURES[kind]
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for use in (LoadImage(), LoadImage().preview):
        with pytest.raises(DsctlError) as caught:
            use(path)
        assert caught.value.problem.startswith(f"{path} ")
        assert problem in caught.value.problem
        assert hint in caught.value.hint


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_cut_off_picture_is_refused_by_loading_and_by_the_preview(tmp_path, image_format):
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, image_format)
    data, path = buffer.getvalue(), tmp_path / "a.png"
    lengths = range(1, len(data) - 2, max(1, len(data) // 60))
    assert len(lengths) >= 60
    for length in lengths:
        path.write_bytes(data[:length])
        for use in (LoadImage(), LoadImage().preview):
            with pytest.raises(DsctlError) as caught:
                use(path)
            assert str(path) in caught.value.problem
            assert "\n" not in caught.value.problem


def problem_of(path: Path) -> str | None:
    try:
        LoadImage().preview(path)
        LoadImage()(path)
    except DsctlError as error:
        return error.problem
    return None


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # what Pillow says about damaged EXIF that it can skip
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF"])
def test_whatever_bytes_are_changed_loading_gives_a_picture_or_an_error_that_names_the_file(tmp_path, image_format):
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    noise(24, 24).save(buffer, image_format, **({} if image_format == "GIF" else {"exif": exif}))
    draw, path, refused = random.Random(0), tmp_path / "a.img", 0
    for _ in range(150):
        data = bytearray(buffer.getvalue())
        for _ in range(draw.choice([1, 3])):
            data[draw.randrange(draw.choice([64, len(data)]))] = draw.randrange(256)
        path.write_bytes(data)
        said = problem_of(path)
        assert said is None or str(path) in said
        refused += said is not None
    assert refused > 0


def test_trailing_bytes_do_not_make_a_whole_picture_a_cut_off_one(tmp_path):
    for name in ("a.png", "a.jpg"):
        path = saved(tmp_path / name, noise(32, 32))
        path.write_bytes(path.read_bytes() + b"something a camera wrote")
        assert LoadImage().preview(path) == (32, 32)


@pytest.mark.parametrize("factor", [1.5, 3])
def test_a_decompression_bomb_is_refused_and_the_limit_named(tmp_path, monkeypatch, factor):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(64 * 64 / factor))
    path = saved(tmp_path / "a.png", Image.new("RGB", (64, 64)))
    for use in (LoadImage(), LoadImage().preview):
        with pytest.raises(DsctlError, match=rf"a.png is too large: more than {int(64 * 64 / factor)} pixels"):
            use(path)


def test_a_picture_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", Image.new("RGB", (64, 64)))

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)  # chmod does not stop the root user that tests may run as
    with pytest.raises(DsctlError, match="a.png cannot be read .permission denied") as caught:
        LoadImage()(path)
    assert "chmod" in caught.value.hint


@pytest.mark.parametrize(
    ("size", "max_pixels", "wanted"),
    [
        ((1000, 600), None, (992, 592)),
        ((1000, 600), 1024 * 1024, (992, 592)),
        ((1536, 1536), 1024 * 1024, (1024, 1024)),
        ((2048, 2048), 1024 * 1024, (1024, 1024)),
        ((4000, 3000), 1024 * 1024, (1168, 880)),
        ((100, 100), 1024 * 1024, (96, 96)),
        ((16, 16), 256, (16, 16)),
        ((96, 96), 96 * 96, (96, 96)),
    ],
)
def test_dynamic_sizes_are_never_larger_than_the_picture_or_the_limit(size, max_pixels, wanted):
    operator = ImageCropAndResize(max_pixels=max_pixels)
    assert operator.preview(size) == operator(Image.new("RGB", size)).size == wanted


@settings(max_examples=150)
@given(st.integers(64, 5000), st.integers(64, 5000), st.sampled_from([8, 16, 32]), st.integers(200_000, 2_000_000))
@example(5000, 5000, 8, 200_000)  # far above the limit
@example(64, 64, 32, 2_000_000)  # far below it
@example(1400, 700, 16, 1400 * 700)  # at it
def test_a_dynamic_size_is_the_largest_that_fits_in_picture_and_limit(width, height, factor, limit):
    operator = ImageCropAndResize(max_pixels=limit, height_division_factor=factor, width_division_factor=factor)
    got = operator.preview((width, height))
    assert got[0] % factor == got[1] % factor == 0
    assert got[0] <= width
    assert got[1] <= height
    assert got[0] * got[1] <= limit
    scale = min(1, (limit / (width * height)) ** 0.5)
    assert width * scale - got[0] < factor + 1e-3
    assert height * scale - got[1] < factor + 1e-3


def test_a_picture_that_needs_no_scaling_keeps_its_pixels():
    image = noise(100, 70)
    assert ImageCropAndResize()(image).tobytes() == image.crop((2, 3, 98, 67)).tobytes()
    same = noise(64, 64)
    assert ImageCropAndResize(height=64, width=64)(same).tobytes() == same.tobytes()


def test_a_fixed_size_covers_and_crops_at_the_centre():
    image = Image.new("RGB", (300, 100), GREEN)
    image.paste(RED, (0, 0, 90, 100))
    image.paste(BLUE, (210, 0, 300, 100))
    got = ImageCropAndResize(height=32, width=32)(image)
    assert got.size == (32, 32)
    assert got.getcolors() == [(32 * 32, GREEN)]
    assert ImageCropAndResize(height=64, width=128)(Image.new("RGB", (32, 32), BLUE)).size == (128, 64)


def test_scaling_down_is_antialiased():
    checkers = Image.frombytes("L", (512, 512), bytes((x + y) % 2 * 255 for y in range(512) for x in range(512)))
    got = ImageCropAndResize(height=64, width=64)(checkers.convert("RGB")).convert("L")
    low, high = got.getextrema()
    assert 120 < low <= high < 136


@pytest.mark.parametrize("arguments", [{"height": 32, "width": 32}, {}, {"max_pixels": 1024}])
def test_a_picture_smaller_than_the_factor_is_refused(arguments):
    for use in (ImageCropAndResize(**arguments).preview, lambda size: ImageCropAndResize(**arguments)(noise(*size))):
        with pytest.raises(DsctlError, match="the picture is 10x10 pixels, but both sides must have at least 16"):
            use((10, 10))


def test_a_shape_too_extreme_for_the_limit_is_refused():
    with pytest.raises(DsctlError, match=r"is 30000x20 pixels; at 65536 pixels it would be 9914x6") as caught:
        ImageCropAndResize(max_pixels=65536).preview((30000, 20))
    assert "--max-pixels" in caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "problem", "hint"),
    [
        ({"height": 100, "width": 96}, "height 100 is not a positive multiple of 16", "96 and 112"),
        ({"height": 96, "width": -16}, "width -16 is not a positive multiple of 16", "use 16"),
        ({"height": 0, "width": 16}, "height 0 is not a positive multiple of 16", "use 16"),
        ({"height": 96}, "height is set without width", "both"),
        ({"width": 96}, "width is set without height", "both"),
        ({"max_pixels": 100}, "max_pixels 100 is less than the smallest size of a picture", "256"),
    ],
)
def test_impossible_sizes_are_usage_errors(arguments, problem, hint):
    with pytest.raises(UsageError, match=problem) as caught:
        ImageCropAndResize(**arguments)
    assert hint in caught.value.hint
