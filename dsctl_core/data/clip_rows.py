"""Rows of videos that give several clips: each clip is a row of its own, made when it is asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, overload

from dsctl_core.data.problems import DataError
from dsctl_core.readable import counted


class ClipIndex:
    """Which row of a table, and which clip of its video, a number is, where row n of the table gives `counts[n]` clips.

    It holds a number for each row of the table, whatever the number of clips.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = tuple(counts)
        self.starts = [0, *accumulate(self.counts)]

    def __len__(self) -> int:
        return self.starts[-1]

    def row_of(self, number: int) -> int:
        """Return the row of the table that clip `number` (from 0, over all rows) is from."""
        return bisect_right(self.starts, number) - 1

    def clip_of(self, number: int) -> int:
        """Return the number of the clip within its video, from 0."""
        return number - self.starts[self.row_of(number)]


class ClipRows(Sequence[Any]):
    """A value of the table for each clip: that of its row."""

    def __init__(self, values: Sequence[Any], clips: ClipIndex) -> None:
        self.values, self.clips = values, clips

    def __len__(self) -> int:
        return len(self.clips)

    @overload
    def __getitem__(self, number: int) -> Any: ...
    @overload
    def __getitem__(self, number: slice) -> list[Any]: ...
    def __getitem__(self, number: int | slice) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        return self.values[self.clips.row_of(range(len(self))[number])]


def require_one_clip(key: str, count: int) -> None:
    """Raise `DataError` for a picture in the column `key`, a frame of a clip, if the video gives `count` > 1 clips."""
    if count > 1:
        raise DataError(
            f"the row has an {key}, and its video gives {counted(count, 'clip')}, each with frames of its own",
            hint=f"remove the column {key}, so that the clips' own frames are taken, or use the first clip alone: "
            "--clip-extraction head",
            kind="video",
        )
