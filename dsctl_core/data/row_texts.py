"""The prompts of the rows of a dataset, and where a row stands, for messages."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager

from dsctl_core.data.captions import Captions
from dsctl_core.data.columns import Row
from dsctl_core.data.problems import DataError, kind_of_problem
from dsctl_core.data.rows import Metadata
from dsctl_core.errors import DsctlError
from dsctl_core.remote.errors import RemoteError

TEXT_COLUMNS = ("prompt",)


class RowTexts:
    """The part of a UnifiedDataset that is about its text columns; see there for the attributes."""

    metadata: Metadata
    captions: Captions

    def prompts(self, number: int) -> tuple[str, ...]:
        """Return every prompt that row `number` can have, without dropout."""
        found: tuple[str, ...] = ()
        for key in TEXT_COLUMNS:
            try:
                found += self.captions.texts(self.metadata.rows.cell(number, key))
            except DsctlError as error:
                raise self._located(number, key, error) from error
        return found

    def chosen_texts(self, number: int, seed: int) -> Row:
        """Return the text columns of row `number` as training reads them; random choices depend on `seed` alone."""
        chosen = {}
        for key in TEXT_COLUMNS:
            with self.cell_errors(number, key):
                chosen[key] = self.captions.choose(self.metadata.rows.cell(number, key), seed)
        return chosen

    def require_prompts(self) -> None:
        """Raise `DataError` if a text column is missing."""
        self.metadata.require_columns(TEXT_COLUMNS)

    def varies(self) -> bool:
        """Return whether a row can have different prompts in different epochs, so that it cannot be encoded once."""
        rows = self.metadata.rows
        several = [key for key in TEXT_COLUMNS if rows.may_hold_lists(key)]
        cells = (rows.cell(number, key) for number in range(len(rows)) for key in several)
        return self.captions.dropout > 0 or any(isinstance(cell, list) and len(cell) > 1 for cell in cells)

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

    def _located(self, number: int, key: str, error: DsctlError) -> DsctlError:
        """Return `error` with the location and the value of the cell `key` of row `number`.

        One of the way to a remote file is returned as it is: the row is not to blame, and not to be left out.
        """
        if isinstance(error, RemoteError):
            return error
        rows = self.metadata.rows
        shown = f"{key} {reprlib.repr(rows.cell(number, key))}" if rows.has(number, key) else key
        problem = f"{self.location(number)}, {shown}: {error.problem}"
        return DataError(problem, hint=error.hint, kind=kind_of_problem(error))
