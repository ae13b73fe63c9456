"""The files that the rows of a dataset name, what is known of them, and where a row stands, for messages."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsctl_core.data.known_files import KnownFiles
from dsctl_core.data.operators import PLAIN, SequentialProcess, ToAbsolutePath
from dsctl_core.data.problems import DataError, kind_of_problem
from dsctl_core.data.routing import RouteByType
from dsctl_core.data.row_numbers import RowNumbers
from dsctl_core.data.rows import Metadata, blank
from dsctl_core.data.stacks import files_of_cell
from dsctl_core.errors import DsctlError
from dsctl_core.progress import Progress


class RowFiles:
    """The part of a UnifiedDataset that is about the cells with names of files; see there for the attributes."""

    known: KnownFiles | None = None
    base_path: Path
    allow_outside: bool
    metadata: Metadata
    data_file_keys: tuple[str, ...]
    optional_keys: frozenset[str]
    single_keys: frozenset[str]
    list_keys: frozenset[str]
    copies: Mapping[str, str]
    _to_path: ToAbsolutePath

    @property
    def rows_in_use(self) -> RowNumbers:
        """The numbers of the rows (from 0), each once."""
        raise NotImplementedError

    def files(self, number: int, key: str) -> list[Path]:
        """Return the paths in the cell `key` of row `number`: one for a name, several for a list, none if empty."""
        return [Path(path) for path in self._paths(number, key)]

    def _paths(self, number: int, key: str) -> list[str]:
        cell = self.metadata.rows.cell(number, key)
        if type(cell) is str and key not in self.list_keys and PLAIN.fullmatch(cell):
            return [self._to_path.text(cell)]
        to_path = self._to_path.text
        to_paths = RouteByType(((str, lambda name: [to_path(name)]), (list, SequentialProcess(to_path))))
        with self.cell_errors(number, key):
            return [] if self.is_empty(number, key) else to_paths(self._file_cell(number, key))

    def look_at_files(self, progress: Progress | None = None, *, whole: bool = False) -> None:
        """Find out about all files of the rows in use, in parallel, unless that is done; with `whole`, hash them too.

        Does nothing without `known`. A file that cannot be used is a problem of its row, found where that is checked.
        """
        if self.known is None or self.known.done >= 1 + whole:
            return
        self.known.read(self._all_paths(), len(self.rows_in_use) * len(self.data_file_keys), progress, whole=whole)

    def _all_paths(self) -> Iterator[str]:
        rows, text = self.metadata.rows, self._to_path.text
        for number in self.rows_in_use:
            for key in self.data_file_keys:
                cell = rows.cell(number, key)
                if type(cell) is str and key not in self.list_keys and PLAIN.fullmatch(cell):
                    yield text(cell)
                    continue
                try:
                    yield from self._paths(number, key)
                except DsctlError:
                    continue

    def is_empty(self, number: int, key: str) -> bool:
        """Return whether the cell `key` of row `number` is empty, in an optional column."""
        if key not in self.optional_keys:
            return False
        cell = self.metadata.rows.cell(number, key)
        return cell is None or cell == [] or (isinstance(cell, str) and blank(cell))

    def is_copy(self, number: int, key: str) -> bool:
        """Return whether the cell `key` of row `number` is made from another column."""
        return key in self.copies

    def _file_cell(self, number: int, key: str) -> Any:
        """Return the cell `key` of row `number`, in a column of several files as a list.

        Raises `DataError` for a list in a column of single files.
        """
        cell = self.metadata.rows.cell(number, key)
        if key in self.list_keys:
            return files_of_cell(cell, ToAbsolutePath(self.base_path, self.allow_outside))
        if isinstance(cell, list | tuple) and key in self.single_keys:
            raise DataError(
                f"the value is a list of {len(cell)}, but a row has one {key}",
                hint='write it as "a.png"; only references, such as edit_image, can be lists',
                kind="list",
            )
        return cell

    def location(self, number: int) -> str:
        """Return the location of row `number` (from 0, as in `row["_row"]`) in the metadata, for messages."""
        return self.metadata.location(number)

    @contextmanager
    def cell_errors(self, number: int, key: str) -> Iterator[None]:
        """Add the location and the value of the cell `key` of row `number` to errors of this block."""
        try:
            yield
        except DsctlError as error:
            raise self._located(number, key, error) from error

    def _located(self, number: int, key: str, error: DsctlError) -> DataError:
        """Return `error` with the location and the value of the cell `key` of row `number`."""
        rows = self.metadata.rows
        shown = f"{key} {reprlib.repr(rows.cell(number, key))}" if rows.has(number, key) else key
        problem = f"{self.location(number)}, {shown}: {error.problem}"
        return DataError(problem, hint=error.hint, kind=kind_of_problem(error))
