"""Load the frames of videos, animated GIFs and folders of frames, selected by count or by time stamp."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dsctl_core.data.facts import Known, Survey
from dsctl_core.data.frame_folder import frame_rate, frame_sizes, frame_times, frames_in, load_frames
from dsctl_core.data.frame_rule import Extraction, FrameRule, ShortClips
from dsctl_core.data.images import open_image
from dsctl_core.data.kinds import VIDEO_SUFFIXES, is_video
from dsctl_core.data.operators import Operator
from dsctl_core.data.problems import DataError
from dsctl_core.data.routing import preview_of
from dsctl_core.data.video_file import Stamps, decode, read_stamps, require_gif_trailer
from dsctl_core.remote import anywhere

if TYPE_CHECKING:
    from PIL import Image as PilImage

KEPT = 8  # files whose time stamps are kept: the clips of a video are read one after another


class FrameLoader(Operator):
    """The base of the video loaders: it selects frames by a `FrameRule` and processes each of them.

    Args:
        num_frames: The number of frames; None: the whole clip.
        time_division_factor: Clips have `time_division_factor` * n + `time_division_remainder` frames.
        time_division_remainder: See `time_division_factor`.
        frame_processor: Applied to each frame, such as a `Resize`.
        fps: Frames per second to sample; None: every frame.
        short: Whether a clip with too few frames is refused or shortened.
        extraction: Whether the frames are from the beginning, spread over the whole clip, or those of one of its clips.
        clip: The number of that clip, from 0.
        known: What is known of the files already, so that a preview does not open them.
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
        clip: int = 0,
        known: Known | None = None,
    ) -> None:
        self.known = known
        self.rule = FrameRule(num_frames, time_division_factor, time_division_remainder, fps, short, extraction, clip)
        self.frame_processor = frame_processor

    def preview(self, value: str | Path) -> Any:
        """Return the (width, height, frames) of the clip when loaded; only the first frame is decoded.

        The result is None if `frame_processor` is a plain function, which has no preview.
        """
        path = Path(value)
        with _naming(path):
            found = self._known_survey(path)
            count, size = len(self.rule.pick(found.times, found.end)), found.size
        if self.frame_processor is not None:
            size = preview_of(self.frame_processor, size)
        return None if size is None else (*size, count)

    def clips(self, value: str | Path) -> int:
        """Return the number of clips that the rule selects from a video."""
        path = Path(value)
        with _naming(path):
            found = self._known_survey(path)
            return self.rule.clips(found.times, found.end)

    def survey(self, path: Path) -> Survey:
        """Return the times of all frames and the size of the first."""
        raise NotImplementedError

    def _known_survey(self, path: Path) -> Survey:
        found = None if self.known is None else self.known.survey(path)
        return self.survey(path) if found is None else found

    def _processed(self, frames: Iterator[PilImage.Image]) -> list[Any]:
        return [frame if self.frame_processor is None else self.frame_processor(frame) for frame in frames]


class LoadVideo(FrameLoader):
    """Load frames of a video (mp4, webm, mov, mkv, avi, gif, ...) as RGB images with the rotation applied."""

    def __call__(self, value: str | Path) -> list[Any]:
        """Decode and return the frames. None that comes after the last of them is decoded."""
        path = Path(value)
        with _naming(path):
            stamps = kept_stamps(path)
            return self._processed(decode(path, self.rule.pick(stamps.times, stamps.end), stamps))

    def survey(self, path: Path) -> Survey:
        """Read the time stamps of all packets, without decoding them, and decode the first frame."""
        return _surveyed_video(path, *_state_of(path))


class LoadGIF(FrameLoader):
    """Load frames of an animated GIF as RGB images, blended with white where they are transparent."""

    def __call__(self, value: str | Path) -> list[Any]:
        """Decode and return the frames."""
        path = Path(value)
        with _naming(path):
            found = self.survey(path)
            return self._processed(_gif_frames(path, self.rule.pick(found.times, found.end)))

    def survey(self, path: Path) -> Survey:
        """Read the durations of all frames."""
        return _surveyed_gif(path)


class LoadFrames(FrameLoader):
    """Load the pictures of a folder as the frames of a clip, in the order of their names, as RGB images.

    `frame_rate` is the cell with the frame rate of the folder (None: the frames are those of the rule's `fps`, so that
    each is taken).
    """

    def __init__(
        self, rule: FrameRule, frame_processor: Callable[[Any], Any] | None = None, frame_rate: Any = None
    ) -> None:
        self.rule, self.frame_processor, self.frame_rate = rule, frame_processor, frame_rate
        self.known = None  # a folder has no state that tells of every change in it

    def __call__(self, value: str | Path) -> list[Any]:
        """Decode and return the frames."""
        path = Path(value)
        with _naming(path):
            paths = frames_in(path)
            times, end = frame_times(len(paths), frame_rate(self.frame_rate, self.rule.fps))
            return self._processed(load_frames(paths, self.rule.pick(times, end)))

    def survey(self, path: Path) -> Survey:
        """Read the headers of all pictures."""
        count, size = _surveyed_folder(path, *_state_of(path))
        times, end = frame_times(count, frame_rate(self.frame_rate, self.rule.fps))
        return Survey(times, end, size)


@lru_cache(maxsize=KEPT)
def _surveyed_folder(path: Path, changed_at: int, size: int) -> tuple[int, tuple[int, int]]:
    sizes = list(frame_sizes(frames_in(path)))
    return len(sizes), sizes[0]


def is_clip(path: str | Path) -> bool:
    """Return whether a file is a clip by its suffix: a video, or a GIF, which models of videos read as one."""
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122 - a Path for each of millions costs more than the rest
    return suffix == ".gif" or suffix in VIDEO_SUFFIXES


def survey_clip(path: Path, stream: BinaryIO) -> Survey:
    """Return the survey of a video or GIF, open as `stream`; raise `DataError` for a file that cannot be used.

    The caller must be inside of `refused_bombs`.
    """
    return LoadVideo().survey(path) if is_video(path) else _surveyed_gif(path, stream)


def frame_loader(
    path: Path, rule: FrameRule, frame_processor: Callable[[Any], Any] | None, known: Known | None = None
) -> FrameLoader:
    """Return the loader for the video, GIF or folder `path`; see FrameLoader for the other parameters."""
    if anywhere.is_dir(path):
        return LoadFrames(rule, frame_processor)
    kind = LoadGIF if path.suffix.lower() == ".gif" else LoadVideo
    count = (rule.num_frames, rule.time_division_factor, rule.time_division_remainder)
    return kind(*count, frame_processor, rule.fps, rule.short, rule.extraction, rule.clip, known)


def count_clips(path: Path, rule: FrameRule, frame_rate: Any = None, known: Known | None = None) -> int:
    """Return the number of clips that `rule` selects from a video, a GIF or a folder of frames; 1 for any other file.

    `frame_rate` is that of a folder, as `LoadFrames` takes it.
    """
    if anywhere.is_dir(path):
        return LoadFrames(rule, None, frame_rate).clips(path)
    return frame_loader(path, rule, None, known).clips(path) if is_clip(path) else 1


def kept_stamps(path: Path) -> Stamps:
    """Return the time stamps of a video; those of the files read last are kept."""
    return _stamps_of(path, *_state_of(path))


@lru_cache(maxsize=KEPT)
def _stamps_of(path: Path, changed_at: int, size: int) -> Stamps:
    return read_stamps(path)


@lru_cache(maxsize=KEPT)
def _surveyed_video(path: Path, changed_at: int, size: int) -> Survey:
    stamps = _stamps_of(path, changed_at, size)
    return Survey(stamps.times, stamps.end, next(decode(path, [0], stamps)).size)


def _state_of(path: Path) -> tuple[int, int]:
    """Return when a file was changed and its size; zeros for one that cannot be looked at, which reading explains."""
    if anywhere.is_apart(path):
        found = anywhere.state_of(path)
        return (0, 0) if found is None else (int.from_bytes(found[1], "big"), found[0])
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _surveyed_gif(path: Path, stream: BinaryIO | None = None) -> Survey:
    times, now = array("d"), 0.0
    with open_image(path, stream) as image:
        require_gif_trailer(path)
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            times.append(now)
            now += image.info.get("duration", 100) / 1000
        return Survey(times, now, image.size)


def _gif_frames(path: Path, wanted: list[int]) -> Iterator[PilImage.Image]:
    from PIL import Image

    with open_image(path) as image:
        for number in wanted:
            image.seek(number)
            frame = image.convert("RGBA")
            yield Image.alpha_composite(Image.new("RGBA", frame.size, "white"), frame).convert("RGB")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the path to a `DataError` that does not have it."""
    try:
        yield
    except DataError as error:
        if str(path) in error.problem:
            raise
        raise DataError(f"{path}: {error.problem}", hint=error.hint, kind=error.kind) from error
