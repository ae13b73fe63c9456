"""Load the frames of videos and animated GIFs, selected by count or by time stamp."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.data.frame_rule import Extraction, FrameRule, ShortClips
from dsctl_core.data.images import COPY_AGAIN, open_image
from dsctl_core.data.operators import Operator, require_file
from dsctl_core.data.problems import DataError, explained_os_errors
from dsctl_core.data.routing import preview_of

if TYPE_CHECKING:
    from PIL import Image as PilImage


class FrameLoader(Operator):
    """The base of the video loaders: it selects frames by a `FrameRule` and processes each of them.

    Args:
        num_frames: The number of frames; None: the whole clip.
        time_division_factor: Clips have `time_division_factor` * n + `time_division_remainder` frames.
        time_division_remainder: See `time_division_factor`.
        frame_processor: Applied to each frame, such as a `Resize`.
        fps: Frames per second to sample; None: every frame.
        short: Whether a clip with too few frames is refused or shortened.
        extraction: Whether the frames are from the beginning or spread over the whole clip.
    """

    def __init__(
        self,
        num_frames: int | None = 81,
        time_division_factor: int = 4,
        time_division_remainder: int = 1,
        frame_processor: Callable[[Any], Any] | None = None,
        fps: float | None = None,
        short: ShortClips = "refuse",
        extraction: Extraction = "head",
    ) -> None:
        self.rule = FrameRule(num_frames, time_division_factor, time_division_remainder, fps, short, extraction)
        self.frame_processor = frame_processor

    def preview(self, value: str | Path) -> Any:
        """Return the (width, height, frames) of the clip when loaded; only the first frame is decoded.

        The result is None if `frame_processor` is a plain function, which has no preview.
        """
        path = Path(value)
        with _naming(path):
            times, end, size = self.survey(path)
            count = len(self.rule.pick(times, end))
        if self.frame_processor is not None:
            size = preview_of(self.frame_processor, size)
        return None if size is None else (*size, count)

    def survey(self, path: Path) -> tuple[list[float], float, tuple[int, int]]:
        """Return the times of all frames and the end of the last one, in seconds, and (width, height)."""
        raise NotImplementedError

    def _processed(self, frames: Iterator[PilImage.Image]) -> list[Any]:
        return [frame if self.frame_processor is None else self.frame_processor(frame) for frame in frames]


class LoadVideo(FrameLoader):
    """Load frames of a video (mp4, webm, mov, mkv, avi, gif, ...) as RGB images with the rotation applied."""

    def __call__(self, value: str | Path) -> list[Any]:
        """Decode and return the frames. None that comes after the last of them is decoded."""
        path = Path(value)
        with _naming(path):
            return self._processed(_decode(path, self.rule.pick(*_times(path))))

    def survey(self, path: Path) -> tuple[list[float], float, tuple[int, int]]:
        """Read the time stamps of all packets, without decoding them, and decode the first frame."""
        times, end = _times(path)
        return times, end, next(_decode(path, [0])).size


class LoadGIF(FrameLoader):
    """Load frames of an animated GIF as RGB images, blended with white where they are transparent."""

    def __call__(self, value: str | Path) -> list[Any]:
        """Decode and return the frames."""
        path = Path(value)
        with _naming(path):
            times, end, _ = self.survey(path)
            return self._processed(_gif_frames(path, self.rule.pick(times, end)))

    def survey(self, path: Path) -> tuple[list[float], float, tuple[int, int]]:
        """Read the durations of all frames."""
        times, now = [], 0.0
        with open_image(path) as image:
            _require_gif_trailer(path)
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                times.append(now)
                now += image.info.get("duration", 100) / 1000
            return times, now, image.size


def frame_loader(path: Path, rule: FrameRule, frame_processor: Callable[[Any], Any] | None) -> FrameLoader:
    """Return the loader for the file `path`, chosen by its suffix; see FrameLoader for the other parameters."""
    kind = LoadGIF if path.suffix.lower() == ".gif" else LoadVideo
    count = (rule.num_frames, rule.time_division_factor, rule.time_division_remainder)
    return kind(*count, frame_processor, rule.fps, rule.short, rule.extraction)


def decode_all(path: Path) -> tuple[list[float], float, tuple[int, int]]:
    """Decode all frames of a video; return their times and the end of the last one (seconds), and (width, height)."""
    times, end = _times(path)
    decoded, size = 0, (0, 0)
    with _open_video(path) as (container, stream):
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            size = size if decoded else _upright(frame).size
            decoded += 1
    if decoded < len(times):
        raise _cut_off_error(path, decoded, len(times))
    return times, end, size


def _times(path: Path) -> tuple[list[float], float]:
    """Return the times of all frames and the end of the last one, in seconds, from the packets of the file.

    The packets are not kept, so that the memory does not depend on the bytes of the file.
    """
    with _open_video(path) as (container, stream):
        step = float(1 / stream.average_rate) if stream.average_rate else 1 / 25
        stamps: list[float | None] = []
        last = step  # the length of the last packet
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                stamps.append(None if packet.pts is None else float(packet.pts * packet.time_base))
                last = float(packet.duration * packet.time_base) if packet.duration else step
        expected, length = stream.frames, _header_duration(container, stream)
    known = [stamp for stamp in stamps if stamp is not None]
    times = sorted(known) if len(known) == len(stamps) else [number * step for number in range(len(stamps))]
    if not times:
        raise _cut_off_error(path, 0, expected)
    end = times[-1] + last
    if len(times) < expected or (length is not None and end - times[0] < length - max(0.1, 2 * step)):
        raise _cut_off_error(path, len(times), expected)
    return times, end


def _gif_frames(path: Path, wanted: list[int]) -> Iterator[PilImage.Image]:
    from PIL import Image

    with open_image(path) as image:
        for number in wanted:
            image.seek(number)
            frame = image.convert("RGBA")
            yield Image.alpha_composite(Image.new("RGBA", frame.size, "white"), frame).convert("RGB")


def _decode(path: Path, wanted: list[int]) -> Iterator[PilImage.Image]:
    """Yield the frames with the indices `wanted`, which ascend; an index that is repeated yields its frame again."""
    with _open_video(path) as (container, stream):
        stream.thread_type = "AUTO"
        remaining = iter(wanted)
        number = next(remaining, None)
        decoded = 0
        for frame in container.decode(stream):
            while number == decoded:
                yield _upright(frame)
                number = next(remaining, None)
            decoded += 1
            if number is None:
                return
    raise _cut_off_error(path, decoded, wanted[-1] + 1)


def _upright(frame: Any) -> PilImage.Image:
    from PIL import Image

    image = frame.to_image()
    turns = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    turn = turns.get(round(frame.rotation) % 360)
    return image if turn is None else image.transpose(turn)


@contextmanager
def _open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a video and its first video stream; errors of the file become a `DataError` that names it."""
    try:
        import av
    except ImportError as error:
        raise DataError(
            f"{path} is a video, and PyAV, which reads videos, is not installed",
            hint='install it with: pip install "dsctl[video]"',
            kind="video",
        ) from error
    require_file(path)
    _require_gif_trailer(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path} has no video stream", hint="use another file, or remove the row", kind="video")
            stream = container.streams.video[0]
            _require_bounded(path, stream.codec_context.width, stream.codec_context.height)
            yield container, stream
    except (av.FFmpegError, ValueError) as error:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty (0 bytes)", hint=COPY_AGAIN, kind="damaged file") from error
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path} is not a video, or is damaged or cut off ({path.stat().st_size} bytes): {reason}",
            hint=COPY_AGAIN,
            kind="damaged file",
        ) from error


def _require_bounded(path: Path, width: int, height: int) -> None:
    """Raise `DataError` for frames of more pixels than pictures may have, before any of them is decoded."""
    from PIL import Image

    if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise DataError(
            f"{path} has frames of {width}x{height}, more than {Image.MAX_IMAGE_PIXELS} pixels",
            hint="scale the video down, or remove the row",
            kind="size",
        )


def _require_gif_trailer(path: Path) -> None:
    """Raise `DataError` for a GIF without its trailer; the decoders would treat a truncated GIF as a complete one."""
    with explained_os_errors(path), path.open("rb") as file:
        if file.read(4) != b"GIF8":
            return
        file.seek(-1, 2)
        if file.read(1) != b";":
            raise DataError(
                f"{path} is damaged or cut off ({path.stat().st_size} bytes): the end of the GIF is missing",
                hint=COPY_AGAIN,
                kind="damaged file",
            )


def _header_duration(container: Any, stream: Any) -> float | None:
    """Return the duration of the video in its header, in seconds, or None if there is none."""
    text = stream.metadata.get("DURATION")  # matroska: "00:00:01.280000000"
    if text is not None:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None or len(container.streams) > 1 else container.duration / 1e6


def _cut_off_error(path: Path, frames: int, expected: int) -> DataError:
    of_expected = f" of {expected}" if expected > frames else ""
    return DataError(
        f"{path} is cut off: it ends after {frames}{of_expected} frames", hint=COPY_AGAIN, kind="damaged file"
    )


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the path to a `DataError` that does not have it."""
    try:
        yield
    except DataError as error:
        if str(path) in error.problem:
            raise
        raise DataError(f"{path}: {error.problem}", hint=error.hint, kind=error.kind) from error
