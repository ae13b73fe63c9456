"""Rows: what a dataset's table holds, where each row stands in it, and the text of a cell."""

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
    """Stands in a row for a value that could not be read; asking for its text says why."""

    error: DataError

    def __repr__(self) -> str:
        return "(not read)"


@dataclass(frozen=True)
class Metadata:
    """The rows of a dataset and where each of them stands.

    `layout` says in words what kind of dataset this is. `lines` has the line on which each row starts, or is None
    where lines say nothing. Rows that have a name of their own (the files of a folder) have it in `names`.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    lines: tuple[int, ...] | None
    layout: str = ""
    names: tuple[str, ...] | None = None

    def place(self, row: int) -> str:
        """Say where row number `row` (from 0) is, counting from 1 as people and editors do."""
        if self.names is not None:
            return f"{self.path} row {row + 1} ({self.names[row]})"
        line = "" if self.lines is None else f" (line {self.lines[row]})"
        return f"{self.path} row {row + 1}{line}"

    def require_columns(self, names: Iterable[str], hint: str | None = None) -> None:
        """Refuse metadata without one of the columns `names`; `hint` adds what else could be meant."""
        for name in names:
            if name not in self.columns:
                raise DataError(
                    f"{self.path} has no column {name!r} (its columns: {_listed(self.columns)})",
                    hint=_column_hint(name, self.columns) + (f", or {hint}" if hint else ""),
                    kind="column",
                )

    def renamed(self, columns: Mapping[str, str]) -> Metadata:
        """Return the same rows with the column `columns[new]` called `new`."""
        for new, old in columns.items():
            if old not in self.columns:
                guess = near_miss(old, self.columns)
                raise DataError(
                    f"{self.path} has no column {old!r} to be called {new!r} (its columns: {_listed(self.columns)})",
                    hint=f"did you mean --column {new}={guess}?" if guess else f"give --column {new}=COLUMN",
                    kind="column",
                )
            if new in self.columns and new not in columns.values():
                raise DataError(
                    f"{self.path} has a column {new!r} already, so {old!r} cannot be called that",
                    hint=f"leave --column {new}={old} out, or rename one of the two in the file",
                    kind="column",
                )
        names = {old: new for new, old in columns.items()}
        rows = tuple({names.get(key, key): value for key, value in row.items()} for row in self.rows)
        return replace(self, columns=tuple(names.get(key, key) for key in self.columns), rows=rows)


def text_cell(value: Any) -> str:
    """Return `value` when it is a text that says something; refuse anything else rather than turn it into text."""
    if isinstance(value, str) and value.strip():
        if any("\ud800" <= character <= "\udfff" or character == "\0" for character in value):
            raise DataError(
                "the text holds a NUL or half a character (an unpaired surrogate)",
                hint="write the text again",
                kind="caption",
            )
        return value
    if isinstance(value, BadCell):
        raise value.error
    if value is None or isinstance(value, str):
        raise DataError("the cell is empty", hint="write a text there, or remove the row", kind="caption")
    raise DataError(f"the value is {kind_of(value)}, not text", hint="put it in double quotes", kind="caption")


def union_of_keys(rows: Iterable[Row]) -> tuple[str, ...]:
    """Return every key of any row, in the order in which they first appear."""
    return tuple(dict.fromkeys(key for row in rows for key in row))


def kind_of(value: Any) -> str:
    """Say what a value is, in the words of json."""
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
        f"or say which column it is with --column {name}=COLUMN"
    )


def _listed(columns: tuple[str, ...]) -> str:
    shown = ", ".join(repr(name) for name in columns[:12])
    return shown if len(columns) <= 12 else f"{shown} and {len(columns) - 12} more"
