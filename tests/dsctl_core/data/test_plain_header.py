"""What the short reader of headers accepts, Pillow opens, with the same format and size."""

from __future__ import annotations

import random
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from dsctl_core.data.images import open_image, plain_size, refused_bombs, upright_size
from dsctl_core.data.plain_header import plain_header


def encoded(mode: str, size: tuple[int, int], **how) -> bytes:
    stream = BytesIO()
    Image.effect_noise(size, 40).convert(mode).save(stream, **how)
    return stream.getvalue()


PLAIN = {
    "jpeg": encoded("RGB", (70, 40), format="JPEG"),
    "grey": encoded("L", (9, 300), format="JPEG", comment=b"a thing"),
    "progressive": encoded("RGB", (33, 65), format="JPEG", progressive=True, quality=30),
    "png": encoded("RGB", (70, 40), format="PNG"),
    "alpha": encoded("RGBA", (17, 4), format="PNG", dpi=(72, 72)),
}
TURNED = Image.Exif()
TURNED[0x0112] = 6
OTHERS = {
    "turned": encoded("RGB", (70, 40), format="JPEG", exif=TURNED),
    "turned png": encoded("RGB", (70, 40), format="PNG", exif=TURNED),
    "cmyk": encoded("CMYK", (70, 40), format="JPEG"),
    "palette": encoded("P", (70, 40), format="PNG"),
    "profile": encoded("RGB", (70, 40), format="JPEG", icc_profile=b"p" * 200),
    "webp": encoded("RGB", (70, 40), format="WEBP"),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_header_is_read_as_pillow_reads_it(name):
    with Image.open(BytesIO(PLAIN[name])) as image:
        assert plain_header(PLAIN[name]) == (image.format, image.size)
        assert plain_size("a.jpg", BytesIO(PLAIN[name])) == image.size


@pytest.mark.parametrize("name", OTHERS)
def test_what_can_be_turned_or_of_another_mode_is_left_to_pillow(name):
    assert plain_header(OTHERS[name]) is None


def test_the_end_the_suffix_and_the_pixels_decide_too(monkeypatch):
    data = PLAIN["jpeg"]
    assert plain_size("a.jpg", BytesIO(data[:-30])) is None
    assert plain_size("a.nef", BytesIO(data)) is None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70 * 40 - 1)
    assert plain_size("a.jpg", BytesIO(data)) is None


def test_whatever_is_accepted_of_a_damaged_header_pillow_opens_with_the_same_size():
    draw, accepted = random.Random(0), 0
    with refused_bombs():
        for number in range(1500):
            data = bytearray(draw.choice([*PLAIN.values(), *OTHERS.values()]))
            for _ in range(draw.randrange(1, 4)):
                place = draw.randrange(2, min(len(data), 700))
                if draw.random() < 0.3:
                    del data[place : place + draw.randrange(1, 9)]
                else:
                    data[place] = draw.choice([draw.randrange(256), data[place] ^ (1 << draw.randrange(8)), 0xFF])
            found = plain_header(bytes(data))
            if found is None or found[1][0] * found[1][1] > Image.MAX_IMAGE_PIXELS:
                continue
            accepted += 1
            with open_image(Path("a.jpg"), BytesIO(data)) as image:
                assert (image.format, upright_size(image)) == found, number
    assert accepted > 100
