"""Inspect a file: decode all of it, and compute the hashes that duplicates are found by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from dsctl_core.data.colour_profiles import ProfileUse, profile_use
from dsctl_core.data.frame_folder import frame_times, frames_in, require_size
from dsctl_core.data.images import ORIENTATION, open_image, refused_bombs, require_known_range, to_8_bit
from dsctl_core.data.kinds import is_video
from dsctl_core.data.operators import require_file
from dsctl_core.data.problems import DataError, explained_os_errors
from dsctl_core.data.video import LoadGIF
from dsctl_core.data.video_file import decode_all
from dsctl_core.files.digest import digest_stream, sample_of
from dsctl_core.remote import anywhere

if TYPE_CHECKING:
    from PIL import Image as PilImage

HASH_SIDE = 8  # the perceptual hash of an image is computed at HASH_SIDE x HASH_SIDE pixels
SUBSAMPLED_MODES = ("L", "P", "RGB", "RGBA", "CMYK")  # Pillow modes that nearest-neighbour resizing leaves as they are


@dataclass(frozen=True)
class FileFacts:
    """The facts about a file that was decoded completely.

    `colors` are the RGB values of the image at 8x8 pixels (192 bytes). `difference_hash` has one bit for each of 8x8
    pixels: whether its right neighbour is brighter. Both are empty for a video. `times` are the times of the frames of
    a video and `end` is the end of the last one, in seconds. `profile` is what is done with the colour profile in the
    file.
    """

    size: tuple[int, int]  # (width, height), with the EXIF orientation applied
    file_bytes: int
    digest: bytes  # SHA-256
    format: str
    expected_format: str | None  # the format of the suffix; None for an unknown suffix
    frames: int = 1
    colors: bytes = b""
    difference_hash: int = 0
    times: tuple[float, ...] = ()
    end: float = 0.0
    profile: ProfileUse = "none"
    is_folder: bool = False  # of frames, whose `times` are counted at one frame a second
    sample: bytes = b""  # the hash of `digest_samples`
    black: bool = False  # of a picture: whether all of it is, as grey

    @property
    def is_video(self) -> bool:
        """Whether the file is read as a video."""
        return bool(self.times)


def inspect(path: Path, videos: bool) -> FileFacts | DataError:
    """Decode all of a file and return its facts, or the error if it cannot be used.

    With `videos` the suffixes of videos, and GIFs, are read as videos.
    """
    try:
        if videos and anywhere.is_dir(path):
            return _inspect_folder(path)
        require_file(path)
        if videos and is_video(path):
            return _inspect_video(path)
        facts = _inspect_picture(path)
        if videos and facts.format == "GIF":
            found = LoadGIF(None).survey(path)
            return replace(facts, times=tuple(found.times), end=found.end)
        return facts
    except DataError as error:
        return error


def inspect_all(paths: list[Path], videos: bool) -> list[FileFacts | DataError]:
    """Inspect several files: one task of a worker process."""
    return [inspect(path, videos) for path in paths]


def _inspect_picture(path: Path) -> FileFacts:
    from PIL import Image

    with explained_os_errors(path), anywhere.opened(path) as file:
        data = file.read()
    with refused_bombs(), open_image(path, BytesIO(data)) as image:
        require_known_range(image, path)
        picture_format, frames = str(image.format), int(getattr(image, "n_frames", 1))
        image.load()
        # Read after decoding, which also finds EXIF data after the pixels and turns a TIFF upright.
        turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        size = (image.height, image.width) if turned else image.size
        profile = profile_use(image)
        colors, difference_hash = perceptual_hash(to_8_bit(_subsample(image), path))
        black = max(colors) <= 1 and to_8_bit(image, path).convert("L").getextrema() == (0, 0)
    expected = Image.registered_extensions().get(path.suffix.lower())
    digest = hashlib.sha256(data).digest()
    return FileFacts(
        size,
        len(data),
        digest,
        picture_format,
        expected,
        frames,
        colors,
        difference_hash,
        profile=profile,
        sample=bytes.fromhex(sample_of(BytesIO(data), len(data))),
        black=black,
    )


def _subsample(image: PilImage.Image) -> PilImage.Image:
    """Return `image` with at most 128 pixels on its shorter side, by nearest-neighbour subsampling.

    The perceptual hash then averages 16x16 of these pixels for each of its own. Averaging all pixels of the image
    would cost about a tenth of the time of decoding it.
    """
    from PIL import Image

    shorter = min(image.size)
    if shorter <= 16 * HASH_SIDE or image.mode not in SUBSAMPLED_MODES:
        return image
    size = tuple(max(round(side * 16 * HASH_SIDE / shorter), 1) for side in image.size)
    return image.resize((size[0], size[1]), Image.Resampling.NEAREST)


def perceptual_hash(image: PilImage.Image) -> tuple[bytes, int]:
    """Return the colors at 8x8 pixels and the difference hash of an RGB image; see `FileFacts`."""
    from PIL import Image

    box = Image.Resampling.BOX
    grey = image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), box).tobytes()
    difference_hash = 0
    for row in range(HASH_SIDE):
        for column in range(HASH_SIDE):
            index = row * (HASH_SIDE + 1) + column
            difference_hash = difference_hash << 1 | (grey[index + 1] > grey[index] + 1)
    return image.resize((HASH_SIDE, HASH_SIDE), box).tobytes(), difference_hash


def _inspect_video(path: Path) -> FileFacts:
    with explained_os_errors(path), anywhere.opened(path) as file:
        digest, file_bytes = bytes.fromhex(digest_stream(file)), file.tell()
        sample = bytes.fromhex(sample_of(file, file_bytes))
    times, end, size = decode_all(path)
    suffix = path.suffix.removeprefix(".").lower()
    return FileFacts(size, file_bytes, digest, suffix, suffix, len(times), times=tuple(times), end=end, sample=sample)


def _inspect_folder(path: Path) -> FileFacts:
    """Decode all frames of a folder."""
    paths = frames_in(path)
    found = [_inspect_picture(each) for each in paths]
    for each, facts in zip(paths, found, strict=True):
        require_size(each, facts.size, paths[0], found[0].size)
    digest = hashlib.sha256(b"".join(facts.digest for facts in found)).digest()
    times, end = frame_times(len(paths), 1)
    file_bytes = sum(facts.file_bytes for facts in found)
    return FileFacts(
        found[0].size, file_bytes, digest, "frames", None, len(paths), times=tuple(times), end=end, is_folder=True
    )


def thumbnail(path: Path, videos: bool, side: int = 160) -> bytes | None:
    """Return a JPEG of a file with sides of at most `side` pixels, or None if the file cannot be decoded."""
    from dsctl_core.data.frame_rule import FrameRule
    from dsctl_core.data.images import LoadImage
    from dsctl_core.data.video import frame_loader

    try:
        as_video = videos and (is_video(path) or anywhere.is_dir(path))
        rule = FrameRule(1, 1, 0, short="shorten")
        picture = frame_loader(path, rule, None)(path)[0] if as_video else LoadImage()(path)
    except DataError:
        return None
    picture.thumbnail((side, side))
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return stream.getvalue()
