"""The numbers of the rows of an epoch: each row once or several times, without a list of the repeats."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate, repeat
from typing import Any


class RowNumbers(Sequence[int]):
    """The numbers `rows`, which differ, each `times` as often (None: once) before the next.

    Memory does not depend on `times`.
    """

    def __init__(self, rows: Sequence[int], times: Sequence[int] | None = None) -> None:
        self.rows = rows if isinstance(rows, range | array) else array("q", rows)
        self.times = None if times is None else array("q", times)
        self._ends = None if times is None else array("q", accumulate(times))

    def __len__(self) -> int:
        return len(self.rows) if not self._ends else self._ends[-1]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            if self._ends is None:
                return list(self.rows[index])
            return [self[each] for each in range(len(self))[index]]
        index = range(len(self))[index]
        return self.rows[index if self._ends is None else bisect_right(self._ends, index)]

    def __iter__(self) -> Iterator[int]:
        if self.times is None:
            return iter(self.rows)
        return (row for row, times in zip(self.rows, self.times, strict=True) for _ in repeat(None, times))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def without(self, excluded: Collection[int]) -> RowNumbers:
        """Return these numbers but for the rows `excluded`."""
        left = [place for place, row in enumerate(self.rows) if row not in excluded]
        times = None if self.times is None else [self.times[place] for place in left]
        return RowNumbers(array("q", (self.rows[place] for place in left)), times)

    def once(self) -> RowNumbers:
        """Return each number once."""
        return RowNumbers(self.rows)


def joined(parts: Sequence[RowNumbers], starts: Sequence[int]) -> RowNumbers:
    """Return the numbers of several datasets as one, in which those of each go on from its start."""
    rows = array("q", (start + row for start, part in zip(starts, parts, strict=True) for row in part.rows))
    if all(part.times is None for part in parts):
        return RowNumbers(rows)
    return RowNumbers(rows, [n for part in parts for n in (part.times or repeat(1, len(part.rows)))])
