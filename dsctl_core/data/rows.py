"""The rows of a dataset, their locations in the metadata file, and checks of their cells."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsctl_core.data.clip_rows import ClipIndex, ClipRows
from dsctl_core.data.columns import Constant, JoinedRows, Rows, RowsOfClips
from dsctl_core.data.problems import DataError
from dsctl_core.errors import near_miss
from dsctl_core.readable import counted
from dsctl_core.remote.address import shown

# Characters that are drawn as nothing, although Unicode has them among letters and symbols: fillers and a blank.
INVISIBLE = "\u115f\u1160\u2800\u3164\uffa0"
VISIBLE = re.compile("[!-~]")  # of most texts a character is among these, and most are found by it
UNWRITABLE = re.compile("[\ud800-\udfff\0]")  # unpaired surrogates and NUL
SHOWN_FILES = 5


@dataclass(frozen=True)
class BadCell:
    """A placeholder for a cell that could not be read; using it as text or file name raises `error`."""

    error: DataError

    def __repr__(self) -> str:
        return "(not read)"


@dataclass(frozen=True)
class LeftOut:
    """The files of a folder that no row has: (suffix, number) of each kind, and the captions without a picture."""

    suffixes: tuple[tuple[str, int], ...] = ()
    captions: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return a line about the files and one about the captions, for people; none about none."""
        lines = []
        if self.suffixes:
            count = sum(number for _, number in self.suffixes)
            kinds = ", ".join(f"{number} {suffix}" for suffix, number in self.suffixes)
            lines.append(f"{counted(count, 'file was', 'files were')} left out: {kinds}")
        if self.captions:
            more = f" and {len(self.captions) - SHOWN_FILES} more" if len(self.captions) > SHOWN_FILES else ""
            named = ", ".join(self.captions[:SHOWN_FILES])
            lines.append(f"{counted(len(self.captions), 'caption has', 'captions have')} no picture: {named}{more}")
        return lines


@dataclass(frozen=True)
class Metadata:
    """The rows of a dataset, with their locations in the metadata file.

    Attributes:
        path: The table, or the folder of a dataset without one.
        columns: The names of all columns.
        rows: The rows.
        lines: The line on which each row starts; None for files without lines of rows (json, Parquet).
        layout: Describes the kind of the dataset for people.
        names: A name for each row if there is one: the file name in a folder of files with captions.
        repeats: How many times an epoch has each row; None: once.
        left_out: The files that are no part of the dataset; always empty for a table, which names its files.
        clips: Where a row is one of several clips of a video: which row of the table it is, and which clip.
    """

    path: Path
    columns: tuple[str, ...]
    rows: Rows | JoinedRows | RowsOfClips
    lines: Sequence[int] | None
    layout: str = ""
    names: Sequence[str] | None = None
    repeats: Sequence[int] | None = None
    left_out: LeftOut = LeftOut()
    clips: ClipIndex | None = None

    def row_of(self, number: int) -> int:
        """Return the row of the table (from 0) that row `number` is, or is a clip of."""
        return number if self.clips is None else self.clips.row_of(number)

    def clip_of(self, number: int) -> int:
        """Return which clip of its video row `number` is, from 0."""
        return 0 if self.clips is None else self.clips.clip_of(number)

    def notes(self) -> list[str]:
        """Return lines for people: what was found, and what was left out."""
        return [f"Dataset: {self.layout}", *self.left_out.lines()]

    def location(self, row: int) -> str:
        """Return the location of row `row` (from 0) for messages: "FILE row 2 (line 3)", counted from 1.

        Of one of several clips of a video: "FILE row 2 (line 3) clip 4".
        """
        number, path = self.row_of(row) + 1, shown(self.path)
        several = self.clips is not None and self.clips.counts[number - 1] > 1
        clip = f" clip {self.clip_of(row) + 1}" if several else ""
        if self.names is not None:
            return f"{path} row {number} ({self.names[row]}){clip}"
        line = "" if self.lines is None else f" (line {self.lines[row]})"
        return f"{path} row {number}{line}{clip}"

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
        if not names:
            return self
        assert isinstance(self.rows, Rows)  # several datasets are joined when their columns have their names
        renamed = tuple(names.get(key, key) for key in self.columns)
        return replace(self, columns=renamed, rows=self.rows.renamed(names))


def with_copies(metadata: Metadata, copies: Mapping[str, str]) -> Metadata:
    """Return the same rows with a further column for each of `copies`, {new column: column with the same cells}.

    Raises `DataError` if there is such a column already.
    """
    for new, old in copies.items():
        if new in metadata.columns:
            raise DataError(
                f"{metadata.path} already has a column {new!r}, so it cannot be made from {old}",
                hint=f"leave out what makes it, or the column {new!r}",
                kind="column",
            )
    if not copies:
        return metadata
    assert isinstance(metadata.rows, Rows)
    empty = Constant(None, len(metadata.rows))  # for a column that is in the header of a table without it in any row
    cells = {new: metadata.rows.columns.get(old, empty) for new, old in copies.items()}
    return replace(metadata, columns=(*metadata.columns, *copies), rows=metadata.rows.with_columns(cells))


def with_caption(metadata: Metadata, caption: str | None) -> Metadata:
    """Return the same rows with the prompt `caption`, unless that is None."""
    if caption is None:
        return metadata
    columns = metadata.columns if "prompt" in metadata.columns else (*metadata.columns, "prompt")
    assert isinstance(metadata.rows, Rows)
    rows = metadata.rows.with_columns({"prompt": Constant(caption, len(metadata.rows))})
    return replace(metadata, columns=columns, rows=rows)


def with_clips(metadata: Metadata, counts: Sequence[int]) -> Metadata:
    """Return the metadata with a row for each clip, where row n of `metadata` gives `counts[n]` of them."""
    index = ClipIndex(counts)
    assert isinstance(metadata.rows, Rows)

    def of_each(values: Sequence[Any] | None) -> Any:
        return None if values is None else ClipRows(values, index)

    return replace(
        metadata,
        rows=RowsOfClips(metadata.rows, index),
        lines=of_each(metadata.lines),
        names=of_each(metadata.names),
        repeats=of_each(metadata.repeats),
        clips=index,
    )


def blank(text: str) -> bool:
    """Return whether nothing of a text can be seen: spaces, control and format characters, such as U+FEFF."""
    if VISIBLE.search(text):
        return False
    return all(unicodedata.category(each) in ("Cc", "Cf", "Zl", "Zp", "Zs") or each in INVISIBLE for each in text)


def is_empty_cell(cell: Any) -> bool:
    """Return whether nothing is in a cell: None, an empty list, or a text of which nothing can be seen."""
    return cell is None or cell == [] or (isinstance(cell, str) and blank(cell))


def text_cell(value: Any) -> str:
    """Return `value` if it is text and not blank; raise `DataError` for anything else, without converting it."""
    if isinstance(value, str) and not blank(value):
        if UNWRITABLE.search(value):
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


def kind_of(value: Any) -> str:
    """Return the JSON type of a value for messages, such as "a list"."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {value}")


def _column_hint(name: str, columns: tuple[str, ...]) -> str:
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
