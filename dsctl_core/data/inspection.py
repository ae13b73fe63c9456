"""Looks at one file as closely as can be: decodes all of it, and keeps what duplicates are found by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dsctl_core.data.folder import VIDEO_SUFFIXES
from dsctl_core.data.images import ORIENTATION, decoded, opened, require_known_pixels
from dsctl_core.data.operators import require_file
from dsctl_core.data.problems import DataError, explained_os_errors
from dsctl_core.data.video import LoadGIF, watch

if TYPE_CHECKING:
    from PIL import Image as PilImage

LOOK = 8  # a picture's look is its colours at LOOK x LOOK pixels
SAMPLED = ("L", "P", "RGB", "RGBA", "CMYK")  # kinds of pixels that stay what they are when most are left out


@dataclass(frozen=True)
class FileFacts:
    """What a whole file turned out to be.

    `look` is its colours at 8x8 pixels (192 bytes) and `outline` has a bit for each of 8x8 places, whether it gets
    brighter to the right; both are empty for a video. `times` are those of a video's frames, in seconds.
    """

    size: tuple[int, int]  # upright
    file_bytes: int
    digest: bytes
    format: str
    expected_format: str | None  # of its suffix; None where that is of no known format
    frames: int = 1
    look: bytes = b""
    outline: int = 0
    times: tuple[float, ...] = ()
    end: float = 0.0

    @property
    def is_video(self) -> bool:
        """Whether this has frames in time rather than one picture."""
        return bool(self.times)


def inspect(path: Path, videos: bool) -> FileFacts | DataError:
    """Decode all of a file and return what it is, or what is wrong with it; `videos` may be read as such."""
    try:
        require_file(path)
        if videos and path.suffix.lower() in VIDEO_SUFFIXES:
            return _inspect_video(path)
        facts = _inspect_picture(path)
        if videos and facts.format == "GIF":
            times, end, _ = LoadGIF(None).survey(path)
            return replace(facts, times=tuple(times), end=end)
        return facts
    except DataError as error:
        return error


def inspect_all(paths: list[Path], videos: bool) -> list[FileFacts | DataError]:
    """Inspect several files: the work of a process between two messages."""
    return [inspect(path, videos) for path in paths]


def _inspect_picture(path: Path) -> FileFacts:
    from PIL import Image

    with explained_os_errors(path):
        data = path.read_bytes()
    with opened(path, data) as image:
        require_known_pixels(image, path)
        picture_format, frames = str(image.format), int(getattr(image, "n_frames", 1))
        image.load()
        # Looked up after decoding, which finds EXIF behind the pixels too; a TIFF is upright by then.
        turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        size = (image.height, image.width) if turned else image.size
        look, outline = look_of(decoded(_reduced(image), path))
    expected = Image.registered_extensions().get(path.suffix.lower())
    digest = hashlib.sha256(data).digest()
    return FileFacts(size, len(data), digest, picture_format, expected, frames, look, outline)


def _reduced(image: PilImage.Image) -> PilImage.Image:
    """Return `image` with 128 pixels on its shorter side, or as many as it has: every so many of its own.

    Averaging them all would take a tenth of the time of decoding; the look averages 256 of these for each of its own.
    """
    from PIL import Image

    shorter = min(image.size)
    if shorter <= 16 * LOOK or image.mode not in SAMPLED:
        return image
    size = tuple(max(round(side * 16 * LOOK / shorter), 1) for side in image.size)
    return image.resize((size[0], size[1]), Image.Resampling.NEAREST)


def look_of(image: PilImage.Image) -> tuple[bytes, int]:
    """Return the look and the outline of an RGB picture."""
    from PIL import Image

    box = Image.Resampling.BOX
    grey = image.convert("L").resize((LOOK + 1, LOOK), box).tobytes()
    outline = 0
    for row in range(LOOK):
        for column in range(LOOK):
            at = row * (LOOK + 1) + column
            outline = outline << 1 | (grey[at + 1] > grey[at] + 1)
    return image.resize((LOOK, LOOK), box).tobytes(), outline


def _inspect_video(path: Path) -> FileFacts:
    digest, total = hashlib.sha256(), 0
    with explained_os_errors(path), path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            total += len(block)
    times, end, size = watch(path)
    suffix = path.suffix.removeprefix(".").lower()
    return FileFacts(size, total, digest.digest(), suffix, suffix, len(times), times=tuple(times), end=end)


def thumbnail(path: Path, videos: bool, side: int = 160) -> bytes | None:
    """Return a small JPEG of a file, None where it cannot be decoded."""
    from io import BytesIO

    from dsctl_core.data.images import LoadImage
    from dsctl_core.data.video import LoadVideo

    try:
        if videos and path.suffix.lower() in VIDEO_SUFFIXES:
            picture = LoadVideo(1, short="shorten")(path)[0]
        else:
            picture = LoadImage()(path)
    except DataError:
        return None
    picture.thumbnail((side, side))
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return stream.getvalue()
