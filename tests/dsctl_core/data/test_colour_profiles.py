"""Colour profiles: pictures come out in sRGB, and those in sRGB keep their pixels."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from dsctl_core.data.images import LoadImage
from dsctl_core.data.inspection import FileFacts, inspect

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# White, red, green and blue of Display P3 (as phones write it) and of Adobe RGB, in XYZ under D50, and their gamma.
PRIMARIES = {
    "Display P3": (((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1572, 0.0666, 0.7841)), 2.2),
    "Adobe RGB": (((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)), 2.19921875),
}
WHITE = (0.9642, 1.0, 0.8249)


def xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(each * 65536) for each in values))


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def written_profile(tags: dict[bytes, bytes], space: bytes) -> bytes:
    """Return an ICC profile of version 2 with these tags."""
    offset, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    size = offset + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"mntr", space, b"XYZ ") + bytes(12) + b"acsp"
    header += bytes(28) + xyz(WHITE)[8:] + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + body


def profile(name: str) -> bytes:
    """Return the profile of a colour space, as cameras and programs write it."""
    if name == "grey":
        return written_profile({b"wtpt": xyz(WHITE), b"kTRC": curve(2.2)}, b"GRAY")
    columns, gamma = PRIMARIES[name]
    matrix = {tag: xyz(column) for tag, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)}
    return written_profile(
        {b"wtpt": xyz(WHITE), **matrix, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(gamma))}, b"RGB "
    )


def saved(path: Path, image: Image.Image, icc: bytes | None, **options: object) -> Path:
    image.save(path, icc_profile=icc, **options)
    return path


COLOURS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK"])
@pytest.mark.parametrize("icc", [None, SRGB, b"damaged", SRGB[:200]], ids=["none", "sRGB", "damaged", "cut"])
def test_a_picture_without_another_profile_keeps_its_pixels(tmp_path: Path, mode: str, icc: bytes | None):
    image, suffix = COLOURS.convert(mode), "tiff" if mode == "CMYK" else "png"
    plain = LoadImage()(saved(tmp_path / f"plain.{suffix}", image, None))
    assert LoadImage()(saved(tmp_path / f"a.{suffix}", image, icc)).tobytes() == plain.tobytes()


@pytest.mark.parametrize("name", PRIMARIES)
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "avif", "jpg", "heic"])
def test_colours_of_a_wider_space_are_converted(tmp_path: Path, name: str, suffix: str):
    import pillow_heif

    pillow_heif.register_heif_opener()
    exact = {} if suffix in ("png", "tiff") else {"quality": 100}
    # A grey, and a muted green that sRGB has too: it lies nearer to the edge there than in a wider space.
    image = Image.new("RGB", (32, 32), (90, 160, 90))
    image.paste((128, 128, 128), (16, 0, 32, 32))
    loaded = LoadImage()(saved(tmp_path / f"a.{suffix}", image, profile(name), **exact))
    red, green, blue = loaded.getpixel((4, 16))
    assert red < 80
    assert 155 < green < 170
    assert blue < 92
    assert max(abs(value - 128) for value in loaded.getpixel((28, 16))) <= 5, "grey stays grey"
    facts = inspect(tmp_path / f"a.{suffix}", videos=False)
    assert isinstance(facts, FileFacts)
    assert facts.profile == "converted"


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparency_survives_a_conversion(tmp_path: Path, mode: str):
    image = Image.new("RGBA", (32, 32), (90, 160, 90, 255))
    image.paste((0, 0, 0, 0), (16, 0, 32, 32))
    path = saved(tmp_path / "a.png", image.quantize() if mode == "P" else image, profile("Adobe RGB"))
    kept = LoadImage(convert_RGBA=True)(path)
    assert [kept.getpixel(place)[3] for place in ((4, 4), (28, 4))] == [255, 0]
    assert kept.getpixel((4, 4))[0] < 80
    assert LoadImage()(path).getpixel((28, 4)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_of_another_gamma_is_converted(tmp_path: Path, mode: str):
    image = Image.new("I;16", (32, 32), 20 * 257) if mode == "I;16" else Image.new("L", (32, 32), 20).convert(mode)
    red, green, blue = LoadImage()(saved(tmp_path / "a.png", image, profile("grey"))).getpixel((4, 4))
    assert red == green == blue
    assert 9 < red < 15, "12.92 * (20 / 255) ** 2.2 * 255 = 12"


def test_a_profile_of_other_pixels_is_not_used(tmp_path: Path):
    image = Image.new("L", (32, 32), 20)
    assert LoadImage()(saved(tmp_path / "a.png", image, profile("Adobe RGB"))).getpixel((4, 4)) == (20, 20, 20)


def test_a_damaged_profile_is_told_apart(tmp_path: Path):
    stream = BytesIO()
    COLOURS.save(stream, "PNG", icc_profile=b"no profile at all")
    (tmp_path / "a.png").write_bytes(stream.getvalue())
    facts = inspect(tmp_path / "a.png", videos=False)
    assert isinstance(facts, FileFacts)
    assert facts.profile == "damaged"
    clean = inspect(saved(tmp_path / "b.png", COLOURS, SRGB), videos=False)
    assert isinstance(clean, FileFacts)
    assert clean.profile == "none"
