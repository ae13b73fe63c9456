"""The rule that selects the frames of a clip, by count or by time stamp."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dsctl_core.data.problems import DataError
from dsctl_core.errors import UsageError
from dsctl_core.readable import counted

ShortClips = Literal["refuse", "shorten"]
Extraction = Literal["head", "uniform", "every"]
TOLERANCE = 1e-3  # seconds; containers round time stamps, some to milliseconds


@dataclass(frozen=True)
class FrameRule:
    """The rule that selects the frames of a clip.

    The number of frames is `time_division_factor` * n + `time_division_remainder`: `num_frames`, or for None as many as
    the clip has. With `fps` these are the frames on screen at 0, 1/fps, 2/fps, ... seconds, without it consecutive
    frames. With the `extraction` "uniform" they are instead the frames on screen at times that are spread evenly from
    the first frame to the last. With "every" a video is cut into clips of `num_frames` that follow one another, and the
    rule selects number `clip`, from 0; frames at the end that make no whole clip are left out. A video with fewer
    frames than `num_frames` is refused, or used as far as it goes if `short` is "shorten". Raises `UsageError` for a
    `num_frames` that is not such a number.
    """

    num_frames: int | None = 81
    time_division_factor: int = 4
    time_division_remainder: int = 1
    fps: float | None = None
    short: ShortClips = "refuse"
    extraction: Extraction = "head"
    clip: int = 0

    def __post_init__(self) -> None:
        if self.num_frames is not None and self.rounded(self.num_frames) != self.num_frames:
            low = max(self.rounded(self.num_frames), self.time_division_remainder or self.time_division_factor)
            raise UsageError(
                f"{self.num_frames} frames is not {self.time_division_factor} * n + {self.time_division_remainder}",
                hint=f"the nearest counts are {low} and {low + self.time_division_factor}",
            )

    def rounded(self, count: int) -> int:
        """Return the largest allowed number of frames that is at most `count`; 0 or less if there is none."""
        return count - (count - self.time_division_remainder) % self.time_division_factor

    def of_clip(self, clip: int) -> FrameRule:
        """Return the rule for clip number `clip` (from 0) of a video, with the extraction "every"."""
        return replace(self, clip=clip)

    def pick(self, times: Sequence[float], end: float) -> list[int]:
        """Return the indices of the frames to use; raise `DataError` for a video that is too short.

        `times` are the times of the frames of the video in seconds, ascending; the last frame lasts until `end`.
        """
        available, count = self._available(times, end)
        if self.extraction == "uniform":
            return _spread(times, count)
        first = self.clip * count
        if first + count > len(available):
            raise DataError(
                f"the video has {counted(len(available) // count, 'clip')} of {counted(count, 'frame')}, so "
                f"there is no clip {self.clip + 1}",
                hint="give the videos of a row one length; if this one has changed meanwhile, start again",
                kind="video",
            )
        return available[first : first + count]

    def clips(self, times: Sequence[float], end: float) -> int:
        """Return the number of clips that a video gives; raise `DataError` for one that is too short for any."""
        available, count = self._available(times, end)
        return len(available) // count if self.extraction == "every" else 1

    def _available(self, times: Sequence[float], end: float) -> tuple[list[int], int]:
        """Return the indices of the frames at the frame rate of the rule, and how many of them make a clip."""
        if self.fps is None:
            available = list(range(len(times)))
        else:
            count = int((end - times[0]) * self.fps + TOLERANCE)
            sample_times = (times[0] + number / self.fps + TOLERANCE for number in range(max(count, 1)))
            available = [bisect_right(times, time) - 1 for time in sample_times]
        wanted = self.num_frames if self.num_frames is not None else self.rounded(len(available))
        at_rate = "" if self.fps is None else f" at {self.fps:g} frames a second"
        if len(available) < wanted and self.short == "refuse":
            raise DataError(
                f"the clip has {counted(len(available), 'frame')}{at_rate}, but {wanted} are needed",
                hint="use a longer clip, lower --num-frames, give --short-clips shorten, or remove the row",
                kind="video",
            )
        count = min(wanted, self.rounded(len(available)))
        if count < 1:
            raise DataError(
                f"the clip has {counted(len(available), 'frame')}{at_rate}, fewer than the model's minimum",
                hint="use a longer clip, or remove the row",
                kind="video",
            )
        return available, count

    def described(self) -> str:
        """Return which frames of a video are taken, for people."""
        count = "all frames" if self.num_frames is None else counted(self.num_frames, "frame")
        if self.extraction == "uniform":
            return f"{count}, spread evenly over each video"
        rate = "" if self.fps is None else f" at {self.fps:g} a second"
        if self.extraction == "every":
            return f"{count}{rate} in each clip, and every clip of each video"
        return f"{count}{rate} from the beginning of each video"


def _spread(times: Sequence[float], count: int) -> list[int]:
    """Return the indices of the frames on screen at `count` times, spread evenly from the first frame to the last."""
    step = (times[-1] - times[0]) / max(count - 1, 1)
    return [bisect_right(times, times[0] + number * step + TOLERANCE) - 1 for number in range(count)]
