"""Write clips as H.264 videos and as GIF and WebP animations, with metadata, and read the metadata back."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files.atomic import atomic_path
from dsctl_core.files.json import decode_json
from dsctl_core.media.clip import Clip
from dsctl_core.media.image_file import grid

if TYPE_CHECKING:
    import av

ANIMATION_FPS = 50  # browsers show frames of less than 20 ms at 10 a second
# Of x264, where no difference is seen. The assembly of its macroblock tree reads memory that it never wrote where a
# row has no multiple of 8 macroblocks: the same frames make other files from run to run. Without it they make the same,
# and 19 is as near to the frames as 17 is with it.
QUALITY = {"crf": "19", "x264-params": "mbtree=0"}
BT_709, LIMITED = 1, 1  # in H.264 (ITU-T H.264, tables E-3 to E-5): colours as browsers expect them
MEDIA_TYPES = {".mp4": "video/mp4", ".gif": "image/gif", ".webp": "image/webp"}
EXIF_IFD, USER_COMMENT, ASCII = 0x8769, 0x9286, b"ASCII\0\0\0"  # Exif 2.32, 4.6.3 and 4.6.5


def write_clip(file: Path, clip: Clip, about: Mapping[str, Any]) -> None:
    """Write `clip` to `file` atomically in the format of its suffix, with `about` as JSON in its metadata.

    That is the comment of an .mp4 and a .gif, and the Exif user comment of a .webp. Raises DsctlError where the format
    cannot hold the clip, and without PyAV, which writes .mp4 files.
    """
    check_clip_file(file, clip.fps)
    write, _ = FORMATS[file.suffix.lower()]
    with atomic_path(file) as temporary:
        write(temporary, clip, json.dumps(about))


def about_clip(path: Path) -> dict[str, Any]:
    """Return the metadata that `write_clip` wrote; {} if the file is no such clip."""
    from PIL import Image, UnidentifiedImageError

    _, read = FORMATS[path.suffix.lower()]
    try:
        about = decode_json(read(path))
    except (OSError, ValueError, SyntaxError, ImportError, UnidentifiedImageError, Image.DecompressionBombError):
        return {}
    return about if isinstance(about, dict) and "dsctl_version" in about else {}


def check_clip_file(file: Path, fps: float) -> None:
    """Raise an error if clips of `fps` frames a second cannot be written to a file of this suffix on this machine."""
    if file.suffix.lower() == ".mp4":
        _pyav(file)
    elif fps > ANIMATION_FPS:
        raise UsageError(
            f"{file} can show at most {ANIMATION_FPS} frames a second, not {fps:g}",
            hint=f"give a name that ends in .mp4, or at most {ANIMATION_FPS} frames a second",
        )


def clip_suffix() -> str:
    """Return the suffix of the clips that this machine can write best: .mp4 with PyAV, else .webp."""
    return ".mp4" if importlib.util.find_spec("av") is not None else ".webp"


def grid_clip(clips: list[Clip], columns: int) -> Clip:
    """Return one clip with `clips`, which have one form, in rows of `columns` clips on white."""
    together = zip(*(clip.frames for clip in clips), strict=True)
    return Clip(tuple(grid(frames, columns) for frames in together), clips[0].fps)


def _pyav(file: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise DsctlError(
            f"{file} is a video, and PyAV, which writes videos, is not installed",
            hint='install it with: pip install "dsctl[video]"; or give a name that ends in .gif or .webp',
        ) from error
    return av


def _write_mp4(file: Path, clip: Clip, about: str) -> None:
    """Write H.264 in yuv420p, which every browser plays, with the index in front, so that it plays while it loads."""
    av = _pyav(file)
    width, height = clip.frames[0].size
    if width % 2 or height % 2:
        raise DsctlError(f"the clip is {width}x{height}, and an .mp4 has even sides", hint="write a .webp instead")
    try:
        with av.open(str(file), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            container.metadata["comment"] = about
            stream = container.add_stream("libx264", rate=Fraction(clip.fps).limit_denominator(1001), options=QUALITY)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            colours = stream.codec_context
            colours.color_range, colours.colorspace = LIMITED, BT_709
            colours.color_primaries, colours.color_trc = BT_709, BT_709
            for frame in clip.frames:
                container.mux(stream.encode(_yuv(av.VideoFrame.from_image(frame))))
            container.mux(stream.encode(None))
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror) from error


def _yuv(frame: av.VideoFrame) -> av.VideoFrame:
    return frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")


def _read_mp4(path: Path) -> str:
    import av

    with av.open(str(path)) as container:
        return container.metadata.get("comment", "{}")


def _write_gif(file: Path, clip: Clip, about: str) -> None:
    _animate(file, clip, 10, format="GIF", comment=about.encode())


def _read_gif(path: Path) -> str:
    from PIL import Image

    with Image.open(path, formats=["GIF"]) as image:
        return image.info.get("comment", b"{}").decode()


def _write_webp(file: Path, clip: Clip, about: str) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = ASCII + about.encode()
    _animate(file, clip, 1, format="WEBP", exif=exif, quality=90)


def _read_webp(path: Path) -> str:
    from PIL import Image

    with Image.open(path, formats=["WEBP"]) as image:
        comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT, b"")
    return bytes(comment).removeprefix(ASCII).decode() or "{}"


def _animate(file: Path, clip: Clip, unit: int, **settings: Any) -> None:
    """Write an animation that repeats for ever, with times in multiples of `unit` milliseconds."""
    first, *others = clip.frames
    durations = durations_of(clip, unit)
    first.save(file, save_all=True, append_images=others, duration=durations, loop=0, **settings)


def durations_of(clip: Clip, unit: int) -> list[int]:
    """Return how long each frame is shown, in milliseconds, multiples of `unit`; the rounding does not add up."""
    ends = [round(number * 1000 / clip.fps / unit) * unit for number in range(len(clip.frames) + 1)]
    return [end - start for start, end in zip(ends, ends[1:], strict=False)]


Write = Callable[[Path, Clip, str], None]
Read = Callable[[Path], str]
FORMATS: dict[str, tuple[Write, Read]] = {
    ".mp4": (_write_mp4, _read_mp4),
    ".gif": (_write_gif, _read_gif),
    ".webp": (_write_webp, _read_webp),
}
