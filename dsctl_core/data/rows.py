"""The rows of a dataset, their locations in the metadata file, and checks of their cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsctl_core.data.problems import DataError
from dsctl_core.errors import near_miss

Row = dict[str, Any]


@dataclass(frozen=True)
class BadCell:
    """A placeholder for a cell that could not be read; using it as text or file name raises `error`."""

    error: DataError

    def __repr__(self) -> str:
        return "(not read)"


@dataclass(frozen=True)
class Metadata:
    """The rows of a dataset, with their locations in the metadata file.

    `layout` describes the kind of the dataset for people. `lines` has the line number on which each row starts, or is
    None for files without lines of rows (json, Parquet). `names` has a name for each row if there is one: the file
    name in a folder of files with captions.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    lines: tuple[int, ...] | None
    layout: str = ""
    names: tuple[str, ...] | None = None

    def location(self, row: int) -> str:
        """Return the location of row `row` (from 0) for messages: "FILE row 2 (line 3)", counted from 1."""
        if self.names is not None:
            return f"{self.path} row {row + 1} ({self.names[row]})"
        line = "" if self.lines is None else f" (line {self.lines[row]})"
        return f"{self.path} row {row + 1}{line}"

    def require_columns(self, names: Iterable[str], hint: str | None = None) -> None:
        """Raise `DataError` if one of the columns `names` is missing; `hint` is added to the hint of the error."""
        for name in names:
            if name not in self.columns:
                raise DataError(
                    f"{self.path} has no column {name!r} (its columns: {_listed(self.columns)})",
                    hint=_column_hint(name, self.columns) + (f", or {hint}" if hint else ""),
                    kind="column",
                )

    def renamed(self, columns: Mapping[str, str]) -> Metadata:
        """Return the same rows with each column `columns[new]` renamed to `new`.

        Raises `DataError` if a column is missing or the new name is taken.
        """
        for new, old in columns.items():
            if old not in self.columns:
                guess = near_miss(old, self.columns)
                raise DataError(
                    f"{self.path} has no column {old!r} to rename to {new!r} (its columns: {_listed(self.columns)})",
                    hint=f"did you mean --column {new}={guess}?" if guess else f"give --column {new}=COLUMN",
                    kind="column",
                )
            if new in self.columns and new not in columns.values():
                raise DataError(
                    f"{self.path} already has a column {new!r}, so {old!r} cannot be renamed to it",
                    hint=f"leave out --column {new}={old}, or rename one of the two in the file",
                    kind="column",
                )
        names = {old: new for new, old in columns.items()}
        rows = tuple({names.get(key, key): value for key, value in row.items()} for row in self.rows)
        return replace(self, columns=tuple(names.get(key, key) for key in self.columns), rows=rows)


def is_empty_cell(value: Any) -> bool:
    """Return whether a cell holds nothing: null, or text without a character, as csv writes it."""
    return value is None or (isinstance(value, str) and not value.strip())


def text_cell(value: Any) -> str:
    """Return `value` if it is text and not blank; raise `DataError` for anything else, without converting it."""
    if isinstance(value, str) and value.strip():
        if any("\ud800" <= character <= "\udfff" or character == "\0" for character in value):
            raise DataError(
                "the text has a NUL character or an unpaired surrogate",
                hint="write the text again",
                kind="caption",
            )
        return value
    if isinstance(value, BadCell):
        raise value.error
    if value is None or isinstance(value, str):
        raise DataError("the cell is empty", hint="add a text, or remove the row", kind="caption")
    raise DataError(f"the value is {kind_of(value)}, not text", hint="put it in double quotes", kind="caption")


def union_of_keys(rows: Iterable[Row]) -> tuple[str, ...]:
    """Return the keys of all rows, in the order in which they first appear."""
    return tuple(dict.fromkeys(key for row in rows for key in row))


def kind_of(value: Any) -> str:
    """Return the JSON type of a value for messages, such as "a list"."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {value}")


def _column_hint(name: str, columns: tuple[str, ...]) -> str:
    separator = next((mark for mark in ";\t|" if len(columns) == 1 and mark in columns[0]), None)
    if separator is not None:
        return f"separate the columns by commas; this file seems to use {separator!r}"
    guess = near_miss(name, columns)
    if guess is not None:
        return f"rename the column {guess!r} to {name!r}, or give --column {name}={guess}"
    return (
        f"the first line of a csv, or the keys of a json object, must name the columns: add {name!r}, "
        f"or give --column {name}=COLUMN for the column that has it"
    )


def _listed(columns: tuple[str, ...]) -> str:
    shown = ", ".join(repr(name) for name in columns[:12])
    return shown if len(columns) <= 12 else f"{shown} and {len(columns) - 12} more"
