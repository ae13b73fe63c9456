"""Image operators: read any picture as 8-bit RGB, crop and resize it to a size that the model takes."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING

from dsctl_core.data.metadata import explained_os_errors
from dsctl_core.data.operators import Operator, require_file
from dsctl_core.errors import DsctlError, UsageError

if TYPE_CHECKING:
    from PIL import Image as PilImage

# What Pillow was seen to raise on files of every common format with bytes cut off or changed.
DAMAGE = (OSError, SyntaxError, ValueError, RuntimeError, EOFError, IndexError, TypeError, OverflowError, struct.error)
ORIENTATION = 0x0112  # EXIF tag; 5 to 8 are the quarter turns
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


class LoadImage(Operator):
    """Read a picture as RGB: upright as its EXIF says, transparency on white, 16 bits scaled to 8, first frame."""

    def __call__(self, value: str | Path) -> PilImage.Image:
        """Decode the whole picture."""
        path = Path(value)
        with opened(path) as image:
            return to_rgb(image, path)

    def preview(self, value: str | Path) -> tuple[int, int]:
        """Return (width, height) from the file's header; a file that does not end as its format does is decoded."""
        path = Path(value)
        with opened(path) as image:
            size = upright_size(image)
            if not ends_properly(path, image.format):
                to_rgb(image, path)
        return size


class ImageCropAndResize(Operator):
    """Bring a picture to a size that the model takes, keeping its shape and its centre.

    With `height` and `width` every picture gets that size: scaled to cover it, then cropped at the centre. Without
    them each keeps its own size, unless it has more than `max_pixels` and is scaled down to that; it is never
    enlarged. Both sides are cropped to multiples of the division factors.
    """

    def __init__(
        self,
        height: int | None = None,
        width: int | None = None,
        max_pixels: int | None = None,
        height_division_factor: int = 16,
        width_division_factor: int = 16,
    ) -> None:
        if (height is None) != (width is None):
            given, missing = ("height", "width") if width is None else ("width", "height")
            raise UsageError(f"{given} is given without {missing}", hint="give both, or neither for dynamic sizes")
        for name, side, factor in (("height", height, height_division_factor), ("width", width, width_division_factor)):
            if side is not None and (side < factor or side % factor):
                lower = max(side // factor, 1) * factor
                raise UsageError(
                    f"{name} {side} is not a positive multiple of {factor}",
                    hint=f"the nearest sizes are {lower} and {lower + factor}" if side > factor else f"use {lower}",
                )
        smallest = height_division_factor * width_division_factor
        if max_pixels is not None and max_pixels < smallest:
            raise UsageError(
                f"max_pixels {max_pixels} is less than the smallest picture", hint=f"use {smallest} or more"
            )
        self.height, self.width, self.max_pixels = height, width, max_pixels
        self.height_division_factor, self.width_division_factor = height_division_factor, width_division_factor

    def target_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) that a picture of this size comes out with."""
        across, down = self.width_division_factor, self.height_division_factor
        if width < across or height < down:
            raise DsctlError(
                f"the picture is {width}x{height} pixels, but both sides must have at least {max(across, down)}",
                hint="use a larger picture, or remove the row",
            )
        if self.width is not None and self.height is not None:
            return self.width, self.height
        scaled = (width, height)
        if self.max_pixels is not None and width * height > self.max_pixels:
            # sqrt(max_pixels * width / height), rounded down exactly: 1536x1536 must give 1024, not 1023.99 -> 1008
            scaled = (isqrt(self.max_pixels * width // height), isqrt(self.max_pixels * height // width))
        if scaled[0] < across or scaled[1] < down:
            raise DsctlError(
                f"the picture is {width}x{height} pixels; at {self.max_pixels} pixels it would be "
                f"{scaled[0]}x{scaled[1]}, but both sides must have at least {max(across, down)}",
                hint="crop the picture to a less extreme shape, raise --max-pixels, or remove the row",
            )
        return scaled[0] // across * across, scaled[1] // down * down

    def __call__(self, value: PilImage.Image) -> PilImage.Image:
        """Return the picture at its target size."""
        from PIL import Image

        width, height = self.target_size(*value.size)
        if self.height is None and (self.max_pixels is None or value.width * value.height <= self.max_pixels):
            scale = 1.0  # only cropped, so every pixel stays as it was
        else:
            scale = max(width / value.width, height / value.height)
        if scale == 1.0:
            x, y = (value.width - width) // 2, (value.height - height) // 2
            return value.crop((x, y, x + width, y + height))
        box_width, box_height = min(width / scale, value.width), min(height / scale, value.height)
        left, top = (value.width - box_width) / 2, (value.height - box_height) / 2
        box = (left, top, left + box_width, top + box_height)
        return value.resize((width, height), Image.Resampling.LANCZOS, box=box)

    def preview(self, value: tuple[int, int]) -> tuple[int, int]:
        """Return the target size for a (width, height)."""
        return self.target_size(*value)


@contextmanager
def opened(path: Path) -> Iterator[PilImage.Image]:
    """Open a picture; whatever is wrong with the file, now or while it is decoded, becomes an error that names it."""
    from PIL import Image, UnidentifiedImageError

    require_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            yield image
    except DsctlError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DsctlError(
            f"{path} is too large: more than {Image.MAX_IMAGE_PIXELS} pixels, the limit against decompression bombs",
            hint="scale the picture down, or remove the row",
        ) from error
    except UnidentifiedImageError as error:
        raise _not_an_image(path) from error
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            with explained_os_errors(path):
                raise
        raise DsctlError(
            f"{path} is damaged or cut off ({path.stat().st_size} bytes): {error}",
            hint="copy or download the file again, or remove the row",
        ) from error


def to_rgb(image: PilImage.Image, path: Path) -> PilImage.Image:
    """Decode `image` into 8-bit RGB as a viewer would show it on white paper."""
    from PIL import Image, ImageOps

    image_format, image = image.format, ImageOps.exif_transpose(image)
    # A 16-bit grey PNG or PGM is mode "I" in some versions of Pillow; elsewhere "I" is 32 bits of unknown range.
    if image.mode in SIXTEEN_BIT_MODES or (image.mode == "I" and image_format in ("PNG", "PPM")):
        return image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L").convert("RGB")
    if image.mode in ("I", "F", "LAB"):
        raise DsctlError(
            f"{path} has pixels of the kind {image.mode!r}, whose range is not known",
            hint="save it as an 8-bit RGB png or jpeg",
        )
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def upright_size(image: PilImage.Image) -> tuple[int, int]:
    """Return (width, height) as they are once the EXIF orientation is applied, without decoding."""
    # Pillow decodes a whole PNG to look for EXIF behind the pixels, where hardly any program writes it; of a TIFF it
    # gives the size upright already.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return image.size
    turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def ends_properly(path: Path, image_format: str | None) -> bool:
    """Say whether the file ends as its format says it must; False also where that cannot be told."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(max(size - 64, 0))
        tail = file.read()
    if image_format in ("JPEG", "MPO"):
        return tail.rstrip(b"\0\r\n ").endswith(b"\xff\xd9")
    if image_format == "PNG":
        return tail.endswith(b"\0\0\0\0IEND\xaeB`\x82")
    if image_format == "WEBP":
        return int.from_bytes(head[4:8], "little") + 8 <= size
    return False


def _not_an_image(path: Path) -> DsctlError:
    """Say what the file is instead of a picture, for the cases that happen to people."""
    with path.open("rb") as file:
        head = file.read(64)
    again = "copy or download the file again, or remove the row"
    if not head:
        return DsctlError(f"{path} is empty (0 bytes)", hint=again)
    if head.startswith(b"version https://git-lfs"):
        return DsctlError(f"{path} is a git-lfs pointer, not the picture itself", hint="fetch it with `git lfs pull`")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return DsctlError(f"{path} is a web page, not a picture", hint="download the picture itself")
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1"):
        return DsctlError(f"{path} is a HEIC picture, which cannot be read", hint="convert it to png or jpeg")
    return DsctlError(f"{path} is not a picture, or its beginning is damaged", hint=again)
