"""Find out about all files of a dataset before its rows are checked."""

from __future__ import annotations

from collections.abc import Iterator

from dsctl_core.data.dataset import UnifiedDataset
from dsctl_core.errors import DsctlError
from dsctl_core.progress import Progress


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
    for number in part.rows_in_use:
        for key in part.data_file_keys:
            try:
                yield from part.paths(number, key)
            except DsctlError:
                continue
