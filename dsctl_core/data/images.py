"""LoadImage: load an image file as 8-bit RGB or RGBA, with errors that name what is wrong with the file."""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from os import SEEK_END
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dsctl_core.data.colour_profiles import to_srgb
from dsctl_core.data.facts import Known
from dsctl_core.data.kinds import add_plugin, refuse_no_picture, refuse_unread, unreadable
from dsctl_core.data.operators import Operator, require_file
from dsctl_core.data.plain_header import HEAD, plain_header
from dsctl_core.data.problems import DataError, explained_os_errors
from dsctl_core.remote import anywhere

if TYPE_CHECKING:
    from PIL import Image as PilImage

# Pillow raises these for files of the common formats that are cut off or have changed bytes (tried by experiment).
DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    EOFError,
    IndexError,
    TypeError,
    OverflowError,
    struct.error,
)
COPY_AGAIN = "copy or download the file again, or remove the row"
PLAIN_SUFFIXES = (".jpg", ".jpeg", ".png")
ORIENTATION = 0x0112  # EXIF tag; 5 to 8 are the quarter turns
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")


class LoadImage(Operator):
    """Load an image as 8-bit RGB.

    The EXIF orientation is applied, colours are converted from the profile in the file to sRGB, transparent pixels are
    blended with white, 16-bit values are scaled to 8 bits, and only the first frame of an animation is read. With
    `convert_RGBA` the result is RGBA and keeps its transparency.
    """

    def __init__(self, convert_RGBA: bool = False, known: Known | None = None) -> None:
        self.convert_RGBA, self.known = convert_RGBA, known

    def __call__(self, value: str | Path) -> PilImage.Image:
        """Decode the image; raise `DataError` for a file that is missing, damaged or not an image."""
        path = Path(value)
        with open_image(path) as image:
            return to_8_bit(image, path, self.convert_RGBA)

    def preview(self, value: str | Path) -> tuple[int, int]:
        """Return (width, height) from the header. A file without the end of its format is decoded to check it."""
        size = None if self.known is None else self.known.size(value)
        if size is not None:
            return size
        path = Path(value)
        with explained_os_errors(path):
            require_file(path)
            with anywhere.opened(path) as stream, refused_bombs():
                return picture_size(path, stream)


def picture_size(path: Path, stream: BinaryIO) -> tuple[int, int]:
    """Return the upright (width, height) of the image in the open file `stream`, which is at `path`.

    A file without the end of its format is decoded to check it. The caller must be inside of `refused_bombs`.
    """
    with open_image(path, stream) as image:
        size = upright_size(image)
        place = stream.tell()
        whole = ends_properly(stream, image.format)
        stream.seek(place)
        if not whole:
            to_8_bit(image, path)
    return size


def plain_size(path: str, stream: BinaryIO) -> tuple[int, int] | None:
    """Return what `picture_size` does, for a whole picture with a plain header; None for any other."""
    from PIL import Image

    if not path.lower().endswith(PLAIN_SUFFIXES):  # by others a file may be told to be of a kind that is not read
        return None
    found = plain_header(stream.read(HEAD))
    if found is None or not ends_properly(stream, found[0]):
        return None
    width, height = found[1]
    return found[1] if width * height <= (Image.MAX_IMAGE_PIXELS or math.inf) else None


@contextmanager
def refused_bombs() -> Iterator[None]:
    """Let Pillow's warning of too large a picture be an error in this block, in all threads that run meanwhile.

    The filters of warnings are of the whole process: whoever opens pictures in threads enters this once, around them.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextmanager
def open_image(path: Path, stream: BinaryIO | None = None) -> Iterator[PilImage.Image]:
    """Open an image with Pillow; errors of opening and decoding it become a `DataError` that names the file.

    `stream` is the file, if it is open or read already; then the caller must be inside of `refused_bombs`.
    """
    from PIL import Image, UnidentifiedImageError

    if stream is None:
        require_file(path)
    refuse_unread(path)
    try:
        with anywhere.opened(path) if stream is None else nullcontext(stream) as source:
            with refused_bombs() if stream is None else nullcontext():
                image = _opened(path, source)
            with image:
                refuse_no_picture(path, image.format)
                yield image
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"{path} is too large: more than {Image.MAX_IMAGE_PIXELS} pixels, the limit against decompression bombs",
            hint="scale the picture down, or remove the row",
            kind="size",
        ) from error
    except UnidentifiedImageError as error:
        raise unreadable(path, _head(path)) from error
    except DECODING_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            with explained_os_errors(path):
                raise
        raise DataError(
            f"{path} is damaged or cut off ({anywhere.size_of(path)} bytes): {error}",
            hint=COPY_AGAIN,
            kind="damaged file",
        ) from error


def to_8_bit(image: PilImage.Image, path: Path, keep_alpha: bool = False) -> PilImage.Image:
    """Return `image` upright as 8-bit sRGB, blended with white where it is transparent, or as RGBA."""
    from PIL import Image, ImageOps

    require_known_range(image, path)
    image_format, image = image.format, ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile")
    if image.mode in SIXTEEN_BIT_MODES or (image.mode == "I" and image_format in SIXTEEN_BIT_FORMATS):
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    if image.mode == "La":
        image = image.convert("LA")
    image = to_srgb(image, profile or None)
    if keep_alpha:
        return image.convert("RGBA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def require_known_range(image: PilImage.Image, path: Path) -> None:
    """Raise `DataError` for pixel values (float, LAB, 32-bit integer) whose range, black to white, is unknown."""
    # A 16-bit grey PNG or PGM is mode "I" in some versions of Pillow; elsewhere "I" is 32 bits of unknown range.
    if image.mode in ("F", "LAB") or (image.mode == "I" and image.format not in SIXTEEN_BIT_FORMATS):
        raise DataError(
            f"{path} has pixels of mode {image.mode!r}, whose range of values is unknown",
            hint="save it as an 8-bit RGB png or jpeg",
            kind="not a picture",
        )


def upright_size(image: PilImage.Image) -> tuple[int, int]:
    """Return (width, height) with the EXIF orientation applied, without decoding the image."""
    # Pillow decodes a whole PNG to find EXIF data after the pixels, where hardly any program writes it. The size of a
    # TIFF has the orientation applied already.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return image.size
    turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def ends_properly(stream: BinaryIO, image_format: str | None) -> bool:
    """Return whether an open file has the end marker or the length of its format; False for formats with neither."""
    size = stream.seek(0, SEEK_END)
    stream.seek(0)
    head = stream.read(12)
    stream.seek(max(size - 64, 0))
    tail = stream.read()
    if image_format in ("JPEG", "MPO"):
        return tail.rstrip(b"\0\r\n ").endswith(b"\xff\xd9")
    if image_format == "PNG":
        return tail.endswith(b"\0\0\0\0IEND\xaeB`\x82")
    if image_format == "WEBP":
        return int.from_bytes(head[4:8], "little") + 8 <= size
    return image_format in ("AVIF", "HEIF") and _boxes_end(stream, size)


def _opened(path: Path, source: BinaryIO) -> PilImage.Image:
    """Open an image with Pillow, which gets the plugin of its format if it does not know it.

    `source` is the open file at `path`.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(source)
    except UnidentifiedImageError:
        if not add_plugin(_head(path)):
            raise
        return Image.open(source)


def _head(path: Path) -> bytes:
    with anywhere.opened(path) as file:
        return file.read(64)


def _boxes_end(stream: BinaryIO, size: int) -> bool:
    """Return whether the boxes of an AVIF or HEIC file (ISO/IEC 14496-12) of `size` bytes end where the file does."""
    start = 0
    while start + 8 <= size:
        stream.seek(start)
        length = int.from_bytes(stream.read(8)[:4], "big")
        if length == 1:
            length = int.from_bytes(stream.read(8), "big")
        if length == 0:  # the box goes on to the end of the file
            return True
        if length < 8:
            return False
        start += length
    return start == size
