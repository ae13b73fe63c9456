"""Tell kinds of files apart by suffix and by signature: pictures, videos, and what looks like one but is not read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dsctl_core.data.problems import DataError

VIDEO_SUFFIXES = (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
# Videos that are streams: nothing in them says how long they are, so one that is cut off looks like a whole one.
STREAMS = (".m2ts", ".mpeg", ".mpg", ".mts", ".ogv", ".wmv")
# Formats that Pillow recognizes and that are no pictures, with what they are.
NO_PICTURES = {
    "BUFR": "weather data",
    "EPS": "a PostScript document",  # Pillow would run Ghostscript, a program, on it
    "FITS": "astronomical data, whose black and white are unknown",
    "GRIB": "weather data",
    "HDF5": "an HDF5 file",
    "MPEG": "a video",
    "PDF": "a PDF document",
    "WMF": "a vector drawing",  # only Windows draws it
}
# Suffixes of pictures that no reader here reads, with what they are. Pillow takes most camera files for TIFFs, and
# would read the small preview in them.
UNREAD_PICTURES = {
    **dict.fromkeys((".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".kdc", ".mef"), "a raw camera file"),
    **dict.fromkeys((".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".sr2", ".srw"), "a raw camera file"),
    **dict.fromkeys((".exr", ".hdr"), "a picture of unlimited brightness, whose white is unknown"),
    **dict.fromkeys((".clip", ".kra", ".xcf"), "the project of a drawing program"),
    **dict.fromkeys((".svg", ".svgz"), "a vector drawing"),
}


def _add_heif() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()


def _add_jxl() -> None:
    import pillow_jxl  # noqa: F401 - the import is what adds it


@dataclass(frozen=True)
class Plugin:
    """A format that Pillow reads with another package, which `extra` of dsctl installs and `add` adds to Pillow."""

    name: str
    suffixes: tuple[str, ...]
    extra: str
    add: Callable[[], None]


PLUGINS = (
    Plugin("HEIC", (".heic", ".heics", ".heif", ".heifs", ".hif"), "heic", _add_heif),
    Plugin("JPEG XL", (".jxl",), "jxl", _add_jxl),
)


@cache
def picture_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of the pictures that Pillow reads, by itself or with a `Plugin`."""
    from PIL import Image

    known = Image.registered_extensions()
    # An MPO is a JPEG with more pictures behind the first; Pillow opens it as a JPEG.
    opened = (set(Image.OPEN) | {"MPO"}) - set(NO_PICTURES)
    return frozenset({suffix for suffix, name in known.items() if name in opened}).union(
        *(plugin.suffixes for plugin in PLUGINS)
    )


@cache
def media_suffixes() -> frozenset[str]:
    """Return the suffixes of the files that are rows of a folder: read, or refused by name."""
    return picture_suffixes().union(VIDEO_SUFFIXES, STREAMS, UNREAD_PICTURES)


def is_video(path: Path) -> bool:
    """Return whether a file is a video by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


# The first bytes of pictures and videos, wherever they are unmistakable.
STARTS = {
    b"\x89PNG\r\n\x1a\n": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF87a": "a GIF picture",
    b"GIF89a": "a GIF picture",
    b"II*\0": "a TIFF picture",
    b"MM\0*": "a TIFF picture",
    b"8BPS\0\1": "a Photoshop picture",
    b"qoif": "a QOI picture",
    b"\0\0\0\x0cjP  \r\n\x87\n": "a JPEG 2000 picture",
    b"\0\0\0\x0cJXL \r\n\x87\n": "a JPEG XL picture",
    b"\xff\x0a": "a JPEG XL picture",
    b"\x1aE\xdf\xa3": "a video",  # matroska, webm
    b"\0\0\1\xba": "a video",  # MPEG
    b"\0\0\1\xb3": "a video",
}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
# What is often found in place of a picture, with what to do instead.
NOT_MEDIA = {
    b"version https://git-lfs": ("a git-lfs pointer, not the picture itself", "fetch it with `git lfs pull`"),
    b"%PDF": ("a PDF document, not a picture", "save its pages as png"),
    b"%!PS": ("a PostScript document, not a picture", "save its pages as png"),
    b"PK\3\4": ("an archive, not a picture", "unpack it"),
    b"v/1\x01": ("an OpenEXR picture, a format that is not supported", "convert it to png or jpeg"),
    b"gimp xcf": ("a GIMP project, a format that is not supported", "export it as png"),
}


def media_of(head: bytes) -> str | None:
    """Return what a file with these first 32 bytes is, such as "a PNG picture" or "a video"; None for other files."""
    if head[4:8] == b"ftyp":
        # The box has its length, "ftyp", the major brand, a version, and the compatible brands.
        brands = {
            head[start : start + 4] for start in (8, *range(16, min(int.from_bytes(head[:4], "big"), len(head)), 4))
        }
        if brands & {b"avif", b"avis"}:
            return "an AVIF picture"
        return "a HEIC picture" if brands & HEIF_BRANDS else "a raw camera file" if b"crx " in brands else "a video"
    if head[:4] == b"RIFF" and head[8:12] in (b"WEBP", b"AVI "):
        return "a WebP picture" if head[8:12] == b"WEBP" else "a video"
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return "a BMP picture"
    return next((what for start, what in STARTS.items() if head.startswith(start)), None)


def plugin_of(head: bytes) -> Plugin | None:
    """Return the plugin that reads a file with these first bytes, if it needs one."""
    found = media_of(head)
    return next((each for each in PLUGINS if found is not None and each.name in found), None)


@cache
def _is_added(plugin: Plugin) -> bool:
    """Have Pillow read the format of `plugin`; return whether its package is installed."""
    try:
        plugin.add()
    except ImportError:
        return False
    return True


def add_plugin(head: bytes) -> bool:
    """Have Pillow read the format of a file with these first bytes; return whether a package for it is installed."""
    plugin = plugin_of(head)
    return plugin is not None and _is_added(plugin)


def unreadable(path: Path, head: bytes) -> DataError:
    """Return the error for a file that Pillow does not read, of which `head` has the first 64 bytes."""
    again = "copy or download the file again, or remove the row"
    problem, hint = f"{path} is not a picture, or its beginning is damaged", again
    found, start = media_of(head), head.lstrip().lower()
    plugin = plugin_of(head)
    known = next((about for begin, about in NOT_MEDIA.items() if head.startswith(begin)), None)
    if not head:
        problem = f"{path} is empty (0 bytes)"
    elif known is not None:
        problem, hint = f"{path} is {known[0]}", known[1]
    elif start.startswith((b"<!doctype html", b"<html")):
        problem, hint = f"{path} is a web page, not a picture", "download the picture itself"
    elif start.startswith((b"<svg", b"<?xml", b"<!doctype svg")):
        problem, hint = f"{path} is a vector drawing (SVG), not a picture of pixels", "export it as png"
    elif plugin is not None and _is_added(plugin):
        problem = f"{path} is {found} that is damaged or cut off"
    elif plugin is not None:
        problem = f"{path} is {found}, which needs a package that is not installed"
        hint = f'install it with: pip install "dsctl[{plugin.extra}]"; or convert the file to png or jpeg'
    elif found == "a video":
        problem, hint = f"{path} is a video, not a picture", "use a picture, such as a frame of the video"
    elif found == "an AVIF picture":
        problem = f"{path} is an AVIF picture, which this build of Pillow does not read, or it is damaged"
        hint = "install Pillow from PyPI, or convert the file to png or jpeg"
    return DataError(problem, hint=hint, kind="not a picture")


def refuse_unread(path: Path) -> None:
    """Raise `DataError` for a file whose suffix is that of a picture or video which is not read."""
    suffix = path.suffix.lower()
    if suffix in STREAMS:
        raise DataError(
            f"{path} is a video in a format that does not say where it ends, so a cut could not be found",
            hint="convert it to mp4, for example with ffmpeg -i FILE -c copy FILE.mp4",
            kind="video",
        )
    what = UNREAD_PICTURES.get(suffix)
    if what is not None:
        raise DataError(
            f"{path} is {what}, a format that is not supported",
            hint="convert it to png, or remove it",
            kind="not a picture",
        )


def refuse_no_picture(path: Path, image_format: str | None) -> None:
    """Raise `DataError` for a format that Pillow recognizes and that is no picture."""
    what = NO_PICTURES.get(image_format or "")
    if what is not None:
        raise DataError(
            f"{path} is {what}, not a picture", hint="convert it to png, or remove it", kind="not a picture"
        )
