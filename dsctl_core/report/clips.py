"""Make small clips for pages: they play in the page, repeat, and need nothing beside it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from dsctl_core.data.frame_rule import FrameRule
from dsctl_core.data.problems import DataError
from dsctl_core.data.video import frame_loader
from dsctl_core.errors import DsctlError
from dsctl_core.media.clip import Clip
from dsctl_core.media.clip_file import MEDIA_TYPES, clip_suffix, write_clip
from dsctl_core.report.html import data_url

if TYPE_CHECKING:
    from PIL.Image import Image

FRAMES, FPS = 41, 8  # of a clip of a dataset, of which a page shows the first seconds


def clip_url(path: Path, side: int) -> str | None:
    """Return a data: URL of the first seconds of a video or GIF, at most `side` pixels per side.

    The result is None for a file that cannot be decoded.
    """
    rule = FrameRule(FRAMES, 1, 0, FPS, "shorten")
    try:
        return _url(Clip(tuple(frame_loader(path, rule, lambda frame: scaled(frame, side))(path)), FPS))
    except (DataError, DsctlError):
        return None


def sample_url(path: Path, fps: float, side: int) -> str:
    """Return a data: URL of all of a sample, a video at `fps` frames a second, at most `side` pixels per side.

    Other files, and videos without PyAV, are in the URL as they are.
    """
    media_type = MEDIA_TYPES[path.suffix.lower()]
    if path.suffix.lower() == clip_suffix() == ".mp4":
        rule = FrameRule(None, 1, 0)
        try:
            return _url(Clip(tuple(frame_loader(path, rule, lambda frame: scaled(frame, side))(path)), fps))
        except DataError:
            pass
    return data_url(path.read_bytes(), media_type)


def scaled(frame: Image, side: int) -> Image:
    """Return `frame` with at most `side` pixels per side, both even, as H.264 needs them."""
    scale = min(side / max(frame.size), 1)
    width, height = (max(round(each * scale / 2) * 2, 2) for each in frame.size)
    return frame if frame.size == (width, height) else frame.resize((width, height))


def _url(clip: Clip) -> str:
    suffix = clip_suffix()
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"clip{suffix}"
        write_clip(file, clip, {})
        return data_url(file.read_bytes(), MEDIA_TYPES[suffix])
