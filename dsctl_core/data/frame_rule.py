"""The rule that selects the frames of a clip, by count or by time stamp."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dsctl_core.data.problems import DataError
from dsctl_core.errors import UsageError

ShortClips = Literal["refuse", "shorten"]
Extraction = Literal["head", "uniform"]
TOLERANCE = 1e-3  # seconds; containers round time stamps, some to milliseconds


@dataclass(frozen=True)
class FrameRule:
    """The rule that selects the frames of a clip.

    The number of frames is `time_division_factor` * n + `time_division_remainder`: `num_frames`, or for None as many as
    the clip has. With `fps` these are the frames on screen at 0, 1/fps, 2/fps, ... seconds, without it consecutive
    frames. With the `extraction` "uniform" they are instead the frames on screen at times that are spread evenly from
    the first frame to the last. A clip with fewer frames than `num_frames` is refused, or used as far as it goes if
    `short` is "shorten". Raises `UsageError` for a `num_frames` that is not such a number.
    """

    num_frames: int | None = 81
    time_division_factor: int = 4
    time_division_remainder: int = 1
    fps: float | None = None
    short: ShortClips = "refuse"
    extraction: Extraction = "head"

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

    def pick(self, times: Sequence[float], end: float) -> list[int]:
        """Return the indices of the frames to use; raise `DataError` for a clip that is too short.

        `times` are the times of the frames of the clip in seconds, ascending; the last frame lasts until `end`.
        """
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
                f"the clip has {len(available)} frames{at_rate}, but {wanted} are needed",
                hint="use a longer clip, lower --num-frames, give --short-clips shorten, or remove the row",
                kind="video",
            )
        count = min(wanted, self.rounded(len(available)))
        if count < 1:
            raise DataError(
                f"the clip has {len(available)} frames{at_rate}, fewer than the model's minimum",
                hint="use a longer clip, or remove the row",
                kind="video",
            )
        return available[:count] if self.extraction == "head" else _spread(times, count)

    def described(self) -> str:
        """Return which frames of a video are taken, for people."""
        count = "all frames" if self.num_frames is None else f"{self.num_frames} frames"
        if self.extraction == "uniform":
            return f"{count}, spread evenly over each video"
        return f"{count}{'' if self.fps is None else f' at {self.fps:g} a second'} from the beginning of each video"


def _spread(times: Sequence[float], count: int) -> list[int]:
    """Return the indices of the frames on screen at `count` times, spread evenly from the first frame to the last."""
    step = (times[-1] - times[0]) / max(count - 1, 1)
    return [bisect_right(times, times[0] + number * step + TOLERANCE) - 1 for number in range(count)]
