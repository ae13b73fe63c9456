"""Find out about all files of a dataset before its rows are checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from dsctl_core.data.dataset import UnifiedDataset
from dsctl_core.errors import DsctlError
from dsctl_core.progress import Progress

CHUNK = 4096  # rows whose paths are made at a time


def look_at_files(dataset: UnifiedDataset, progress: Progress | None = None, *, whole: bool = False) -> None:
    """Find out about all files of the rows in use, in parallel, unless that is done; with `whole`, hash them too.

    Does nothing for a dataset without `known`. A file that cannot be used is a problem of its row, found where that is
    checked.
    """
    for part in dataset.parts:
        if part.known is not None and part.known.done < 1 + whole:
            count = len(part.rows_in_use) * len(part.data_file_keys)
            part.known.read(_paths(part), count, progress, whole=whole)


def _paths(part: UnifiedDataset) -> Iterator[str]:
    """Yield the paths row by row, those of a row in the order of the columns."""
    rows = part.rows_in_use
    for start in range(0, len(rows), CHUNK):
        numbers = rows[start : start + CHUNK]
        yield from _plain_paths(part, numbers) or _each_path(part, numbers)


def _plain_paths(part: UnifiedDataset, numbers: Sequence[int]) -> Iterator[str] | None:
    """Return the paths of rows that follow one another and have one plain name in each column; None for others."""
    first, last = numbers[0], numbers[-1] + 1
    if last - first != len(numbers):  # they increase
        return None
    columns = [part.plain_paths(first, last, key) for key in part.data_file_keys]
    found = [column for column in columns if column is not None]
    return chain.from_iterable(zip(*found, strict=True)) if len(found) == len(columns) else None


def _each_path(part: UnifiedDataset, numbers: Sequence[int]) -> Iterator[str]:
    for number in numbers:
        for key in part.data_file_keys:
            try:
                yield from part.paths(number, key)
            except DsctlError:
                continue
