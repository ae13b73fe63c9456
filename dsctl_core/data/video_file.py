"""Video files, through PyAV: the time stamps of their frames, and the frames themselves."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dsctl_core.data.images import COPY_AGAIN
from dsctl_core.data.operators import require_file
from dsctl_core.data.problems import DataError, explained_os_errors
from dsctl_core.remote import anywhere

if TYPE_CHECKING:
    from PIL import Image as PilImage


@dataclass(frozen=True)
class Stamps:
    """The time stamps of the frames of a video file, as their packets have them.

    `times` are in seconds, ascending, and `end` is the end of the last frame. `pts` are the same times in units of the
    stream, or empty for a file that does not have one of its own for each frame; `keys` are those of the key frames, at
    which decoding can begin.
    """

    times: Sequence[float]
    end: float
    pts: Sequence[int]
    keys: Sequence[int]

    def start_for(self, number: int) -> tuple[int, int] | None:
        """Return (index, pts) of the last key frame at or before frame `number`; None to decode from the beginning."""
        if not self.pts:
            return None
        key = self.keys[bisect_right(self.keys, self.pts[number]) - 1]
        index = bisect_right(self.pts, key) - 1
        return (index, key) if 0 < index <= number else None


def read_stamps(path: Path) -> Stamps:
    """Read the time stamps of all packets of a file, without decoding them.

    The packets are not kept, so that the memory does not depend on the bytes of the file.
    """
    with open_video(path) as (container, stream):
        step = float(1 / stream.average_rate) if stream.average_rate else 1 / 25
        pts, keys, packets = array("q"), array("q"), 0
        last = step  # the length of the last packet
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                packets += 1
                if packet.pts is not None:
                    pts.append(packet.pts)
                    if packet.is_keyframe:
                        keys.append(packet.pts)
                last = float(packet.duration * packet.time_base) if packet.duration else step
        unit, expected, length = stream.time_base, stream.frames, _header_duration(container, stream)
    if not packets:
        raise _cut_off_error(path, 0, expected)
    known = len(pts) == packets
    pts, keys = (array("q", sorted(each)) for each in (pts, keys))
    times = array("d", (float(each * unit) for each in pts) if known else (number * step for number in range(packets)))
    end = times[-1] + last
    if len(times) < expected or (length is not None and end - times[0] < length - max(0.1, 2 * step)):
        raise _cut_off_error(path, len(times), expected)
    distinct = known and all(before < after for before, after in zip(pts, pts[1:], strict=False))
    return Stamps(times, end, pts if distinct and keys else array("q"), keys)


def decode(path: Path, wanted: Sequence[int], stamps: Stamps) -> Iterator[PilImage.Image]:
    """Yield the frames with the indices `wanted`, which ascend; an index that is repeated yields its frame again.

    Decoding begins at the last key frame before them.
    """
    with open_video(path) as (container, stream):
        stream.thread_type = "AUTO"
        frames, decoded = _from_key(container, stream, stamps, wanted[0])
        remaining = iter(wanted)
        number = next(remaining, None)
        for frame in frames:
            while number == decoded:
                yield _upright(frame)
                number = next(remaining, None)
            decoded += 1
            if number is None:
                return
    raise _cut_off_error(path, decoded, wanted[-1] + 1)


def _from_key(container: Any, stream: Any, stamps: Stamps, first: int) -> tuple[Iterator[Any], int]:
    """Return the decoded frames from the last key frame before frame `first` on, and the index of that key frame.

    A file whose index leads to another place than its packets say is decoded from the beginning.
    """
    start = stamps.start_for(first)
    if start is None:
        return container.decode(stream), 0
    index, key = start
    container.seek(key, stream=stream)
    frames = container.decode(stream)
    for frame in frames:  # those before the key frame belong to the one before it, and may lack what they refer to
        if frame.pts is None or frame.pts > key:
            break
        if frame.pts == key:
            return _with_first(frame, frames), index
    container.seek(0)
    return container.decode(stream), 0


def _with_first(frame: Any, others: Iterator[Any]) -> Iterator[Any]:
    yield frame
    yield from others


def decode_all(path: Path) -> tuple[Sequence[float], float, tuple[int, int]]:
    """Decode all frames of a video; return their times and the end of the last one (seconds), and (width, height)."""
    stamps = read_stamps(path)
    decoded, size = 0, (0, 0)
    with open_video(path) as (container, stream):
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            size = size if decoded else _upright(frame).size
            decoded += 1
    if decoded < len(stamps.times):
        raise _cut_off_error(path, decoded, len(stamps.times))
    return stamps.times, stamps.end, size


def _upright(frame: Any) -> PilImage.Image:
    from PIL import Image

    image = frame.to_image()
    turns = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    turn = turns.get(round(frame.rotation) % 360)
    return image if turn is None else image.transpose(turn)


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
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
    require_gif_trailer(path)
    try:
        with _source(path) as source, av.open(source) as container:
            if not container.streams.video:
                raise DataError(f"{path} has no video stream", hint="use another file, or remove the row", kind="video")
            stream = container.streams.video[0]
            _require_bounded(path, stream.codec_context.width, stream.codec_context.height)
            yield container, stream
    except (av.FFmpegError, ValueError) as error:
        if anywhere.size_of(path) == 0:
            raise DataError(f"{path} is empty (0 bytes)", hint=COPY_AGAIN, kind="damaged file") from error
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path} is not a video, or is damaged or cut off ({anywhere.size_of(path)} bytes): {reason}",
            hint=COPY_AGAIN,
            kind="damaged file",
        ) from error


@contextmanager
def _source(path: Path) -> Iterator[str | BinaryIO]:
    """Give what PyAV reads: of a file of its own its path, else the open file."""
    if anywhere.is_apart(path):
        with anywhere.opened(path) as stream:
            yield stream
    else:
        yield str(path)


def _require_bounded(path: Path, width: int, height: int) -> None:
    """Raise `DataError` for frames of more pixels than pictures may have, before any of them is decoded."""
    from PIL import Image

    if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise DataError(
            f"{path} has frames of {width}x{height}, more than {Image.MAX_IMAGE_PIXELS} pixels",
            hint="scale the video down, or remove the row",
            kind="size",
        )


def require_gif_trailer(path: Path) -> None:
    """Raise `DataError` for a GIF without its trailer; the decoders would treat a truncated GIF as a complete one."""
    with explained_os_errors(path), anywhere.opened(path) as file:
        if file.read(4) != b"GIF8":
            return
        file.seek(-1, 2)
        if file.read(1) != b";":
            raise DataError(
                f"{path} is damaged or cut off ({anywhere.size_of(path)} bytes): the end of the GIF is missing",
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
