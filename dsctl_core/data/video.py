"""Video operators: exactly the frames asked for, by their time stamps, or one error that names the file."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dsctl_core.data.images import AGAIN, opened
from dsctl_core.data.operators import Operator, require_file
from dsctl_core.data.problems import DataError, explained_os_errors
from dsctl_core.data.routing import preview_of
from dsctl_core.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image as PilImage

ShortClips = Literal["refuse", "shorten"]
TOLERANCE = 1e-3  # seconds by which rounded time stamps may miss the time they stand for


@dataclass(frozen=True)
class FrameRule:
    """Which frames of a clip are taken.

    The count is `time_division_factor` * n + `time_division_remainder`, at most `num_frames` (None: the whole clip).
    With `fps` the frames are those on screen at 0, 1/fps, 2/fps, ...; without, every frame counts. A clip with fewer
    frames than `num_frames` is refused, or with `short` "shorten" gives as many as it can.
    """

    num_frames: int | None = 81
    time_division_factor: int = 4
    time_division_remainder: int = 1
    fps: float | None = None
    short: ShortClips = "refuse"

    def __post_init__(self) -> None:
        if self.num_frames is not None and self.rounded(self.num_frames) != self.num_frames:
            low = max(self.rounded(self.num_frames), self.time_division_remainder or self.time_division_factor)
            raise UsageError(
                f"{self.num_frames} frames is not {self.time_division_factor} * n + {self.time_division_remainder}",
                hint=f"the nearest counts are {low} and {low + self.time_division_factor}",
            )

    def rounded(self, count: int) -> int:
        """Return the largest count that fits the rule and is not above `count`; 0 or less where there is none."""
        return count - (count - self.time_division_remainder) % self.time_division_factor

    def pick(self, times: Sequence[float], end: float) -> list[int]:
        """Return which frames to take of a clip with frames at `times` (seconds, rising), the last until `end`."""
        if self.fps is None:
            available = list(range(len(times)))
        else:
            count = int((end - times[0]) * self.fps + TOLERANCE)
            moments = (times[0] + number / self.fps + TOLERANCE for number in range(max(count, 1)))
            available = [bisect_right(times, moment) - 1 for moment in moments]
        wanted = self.num_frames if self.num_frames is not None else self.rounded(len(available))
        at_rate = "" if self.fps is None else f" at {self.fps:g} frames a second"
        if len(available) < wanted and self.short == "refuse":
            raise DataError(
                f"the clip has {len(available)} frames{at_rate}, but {wanted} are asked for",
                hint="use a longer clip, lower --num-frames, give --short-clips shorten, or remove the row",
                kind="video",
            )
        count = min(wanted, self.rounded(len(available)))
        if count < 1:
            raise DataError(
                f"the clip has {len(available)} frames{at_rate}, fewer than the model's least",
                hint="use a longer clip, or remove the row",
                kind="video",
            )
        return available[:count]


class FrameLoader(Operator):
    """What the loaders of moving pictures share: which frames, and what each of them goes through."""

    def __init__(
        self,
        num_frames: int | None = 81,
        time_division_factor: int = 4,
        time_division_remainder: int = 1,
        frame_processor: Callable[[Any], Any] | None = None,
        fps: float | None = None,
        short: ShortClips = "refuse",
    ) -> None:
        self.rule = FrameRule(num_frames, time_division_factor, time_division_remainder, fps, short)
        self.frame_processor = frame_processor

    def preview(self, value: str | Path) -> Any:
        """Return (width, height, frames) as they will be loaded; nothing but the first frame is decoded."""
        path = Path(value)
        with _named(path):
            times, end, size = self.survey(path)
            count = len(self.rule.pick(times, end))
        if self.frame_processor is not None:
            size = preview_of(self.frame_processor, size)
        return None if size is None else (*size, count)

    def survey(self, path: Path) -> tuple[list[float], float, tuple[int, int]]:
        """Return the times of all frames, the end of the last one, and (width, height)."""
        raise NotImplementedError

    def _processed(self, frames: Iterator[PilImage.Image]) -> list[Any]:
        return [frame if self.frame_processor is None else self.frame_processor(frame) for frame in frames]


class LoadVideo(FrameLoader):
    """Read frames of a video (mp4, webm, mov, mkv, avi, gif, ...) as upright RGB pictures."""

    def __call__(self, value: str | Path) -> list[Any]:
        """Decode and return the frames."""
        path = Path(value)
        with _named(path):
            times, end, _ = self.survey(path)
            return self._processed(_decode(path, self.rule.pick(times, end)))

    def survey(self, path: Path) -> tuple[list[float], float, tuple[int, int]]:
        """Read the time stamps of all packets, which decodes nothing, and the first frame."""
        with _container(path) as (container, stream):
            step = float(1 / stream.average_rate) if stream.average_rate else 1 / 25
            packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
            stamps = [None if p.pts is None else float(p.pts * p.time_base) for p in packets]
            lengths = [float(p.duration * p.time_base) if p.duration else step for p in packets]
            announced, length = stream.frames, _announced_length(container, stream)
        known = [stamp for stamp in stamps if stamp is not None]
        times = sorted(known) if len(known) == len(stamps) else [number * step for number in range(len(stamps))]
        if not times:
            raise _cut_off(path, 0, announced)
        end = times[-1] + lengths[-1]
        if len(times) < announced or (length is not None and end - times[0] < length - max(0.1, 2 * step)):
            raise _cut_off(path, len(times), announced)
        first = next(_decode(path, [0]))
        return times, end, first.size


class LoadGIF(FrameLoader):
    """Read frames of an animated GIF as RGB pictures, transparency on white."""

    def __call__(self, value: str | Path) -> list[Any]:
        """Decode and return the frames."""
        path = Path(value)
        with _named(path):
            times, end, _ = self.survey(path)
            return self._processed(_gif_frames(path, self.rule.pick(times, end)))

    def survey(self, path: Path) -> tuple[list[float], float, tuple[int, int]]:
        """Read how long each frame is shown."""
        times, now = [], 0.0
        with opened(path) as image:
            _require_gif_end(path)
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                times.append(now)
                now += image.info.get("duration", 100) / 1000
            return times, now, image.size


def watch(path: Path) -> tuple[list[float], float, tuple[int, int]]:
    """Decode a whole video; return the times of its frames, the end of the last one, and (width, height)."""
    times, end, size = LoadVideo(None).survey(path)
    with _container(path) as (container, stream):
        stream.thread_type = "AUTO"
        found = sum(1 for _ in container.decode(stream))
    if found < len(times):
        raise _cut_off(path, found, len(times))
    return times, end, size


def _gif_frames(path: Path, wanted: list[int]) -> Iterator[PilImage.Image]:
    from PIL import Image

    with opened(path) as image:
        for number in wanted:
            image.seek(number)
            frame = image.convert("RGBA")
            yield Image.alpha_composite(Image.new("RGBA", frame.size, "white"), frame).convert("RGB")


def _decode(path: Path, wanted: list[int]) -> Iterator[PilImage.Image]:
    """Yield the frames whose numbers are in `wanted`, which rises; one that is named twice comes twice."""
    with _container(path) as (container, stream):
        stream.thread_type = "AUTO"
        left = iter(wanted)
        number = next(left, None)
        done = 0
        for frame in container.decode(stream):
            while number == done:
                yield _upright(frame)
                number = next(left, None)
            done += 1
            if number is None:
                return
    raise _cut_off(path, done, wanted[-1] + 1)


def _upright(frame: Any) -> PilImage.Image:
    from PIL import Image

    image = frame.to_image()
    turns = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    turn = turns.get(round(frame.rotation) % 360)
    return image if turn is None else image.transpose(turn)


@contextmanager
def _container(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a video and its first video stream; what is wrong with the file becomes an error that names it."""
    try:
        import av
    except ImportError as error:
        raise DataError(
            f"{path} is a video, and PyAV, which reads them, is not installed",
            hint='install it with: pip install "dsctl[video]"',
            kind="video",
        ) from error
    require_file(path)
    _require_gif_end(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path} has no video in it", hint="use another file, or remove the row", kind="video")
            yield container, container.streams.video[0]
    except (av.FFmpegError, ValueError) as error:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty (0 bytes)", hint=AGAIN, kind="damaged file") from error
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path} is not a video, or is damaged or cut off ({path.stat().st_size} bytes): {reason}",
            hint=AGAIN,
            kind="damaged file",
        ) from error


def _require_gif_end(path: Path) -> None:
    """Refuse a GIF without its last byte: what reads GIFs takes its frames up to there for the whole."""
    with explained_os_errors(path), path.open("rb") as file:
        if file.read(4) != b"GIF8":
            return
        file.seek(-1, 2)
        if file.read(1) != b";":
            raise DataError(
                f"{path} is damaged or cut off ({path.stat().st_size} bytes): it does not end as a GIF does",
                hint=AGAIN,
                kind="damaged file",
            )


def _announced_length(container: Any, stream: Any) -> float | None:
    """Return how many seconds of video the header announces; None where it does not say."""
    text = stream.metadata.get("DURATION")  # matroska: "00:00:01.280000000"
    if text is not None:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None or len(container.streams) > 1 else container.duration / 1e6


def _cut_off(path: Path, found: int, announced: int) -> DataError:
    of = f" of {announced}" if announced > found else ""
    return DataError(f"{path} is cut off: it ends after {found}{of} frames", hint=AGAIN, kind="damaged file")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in an error that comes from its frames."""
    try:
        yield
    except DataError as error:
        if str(path) in error.problem:
            raise
        raise DataError(f"{path}: {error.problem}", hint=error.hint, kind=error.kind) from error
