"""Hold the rows of a table by column, in a few large buffers: about the bytes of its text, and 4 for each cell.

A dict for each row would take several hundred bytes, whatever is in it.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, overload

from dsctl_core.data.clip_rows import ClipRows
from dsctl_core.files.json import decode_json

Row = dict[str, Any]

TEXT, JSON, OBJECT, ABSENT = range(4)  # how a cell is held
# Rows that are put into buffers at a time: fewer lists or dicts than make the garbage collector walk all objects, which
# with the modules of a training in memory takes three times as long as reading the table.
CHUNK = 256
PLAIN = (str, bool, int, float, type(None))


class Column(Sequence[Any]):
    """The cells of one column; text and what JSON can write are held as bytes, other objects as they are."""

    def __init__(self, cells: Iterable[Any] = ()) -> None:
        self._bytes, self._ends = bytearray(), array("I", [0])
        self._kinds: bytearray | None = None  # None: all are text
        self.is_ascii, self.longest = True, 0  # of the cells as they are held; the longest one in bytes
        self._objects: dict[int, Any] = {}
        self.extend(list(cells))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, number: int) -> Any: ...
    @overload
    def __getitem__(self, number: slice) -> list[Any]: ...
    def __getitem__(self, number: int | slice) -> Any:
        if isinstance(number, slice):
            return [self.at(each) for each in range(len(self))[number]]
        return self.at(range(len(self))[number])

    def at(self, number: int) -> Any:
        """Return the cell of row `number`, which is one of them."""
        kinds, ends = self._kinds, self._ends
        if kinds is not None and kinds[number] > JSON:
            return self._objects.get(number, Absent)
        text = self._bytes[ends[number] : ends[number + 1]].decode("utf-8", "surrogatepass")
        if kinds is None or kinds[number] == TEXT:
            return text
        return decode_json(text, finite=False, any_text=True)

    def texts(self, first: int, last: int) -> list[str]:
        """Return the cells of the rows from `first` to before `last`, of a column whose cells are all text."""
        ends = self._ends[first : last + 1]
        whole, begin = self._bytes[ends[0] : ends[-1]], ends[0]
        if self.is_ascii:
            text = whole.decode("ascii")
            return [text[here - begin : there - begin] for here, there in pairwise(ends)]
        return [whole[here - begin : there - begin].decode("utf-8", "surrogatepass") for here, there in pairwise(ends)]

    def extend(self, cells: Sequence[Any]) -> None:
        """Add cells at the end."""
        texts: Sequence[str] = cells
        if self._kinds is not None or set(map(type, cells)) - {str}:
            texts = self._encoded(cells)
        whole = "".join(texts)
        lengths: Sequence[int]
        if whole.isascii():
            self._bytes += whole.encode()
            lengths = [*map(len, texts)]
        else:
            encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
            self._bytes += b"".join(encoded)
            lengths = [*map(len, encoded)]
            self.is_ascii = False
        self.longest = max(self.longest, *lengths, 0)
        ends = accumulate(lengths, initial=self._ends[-1])
        next(ends)
        if len(self._bytes) >= 2**32 and self._ends.typecode == "I":
            self._ends = array("Q", self._ends)
        self._ends.extend(ends)

    def _encoded(self, cells: Sequence[Any]) -> list[str]:
        """Return cells as text, and note of each how it is held."""
        if self._kinds is None:
            self._kinds = bytearray(len(self))
        texts = []
        for number, cell in enumerate(cells, len(self)):
            kind, text = TEXT, cell
            if cell is Absent:
                kind, text = ABSENT, ""
            elif type(cell) is not str and _is_json(cell):
                kind, text = JSON, json.dumps(cell)
            elif type(cell) is not str:
                kind, text = OBJECT, ""
                self._objects[number] = cell
            self._kinds.append(kind)
            texts.append(text)
        return texts

    @property
    def is_text(self) -> bool:
        """Whether all cells are text."""
        return self._kinds is None

    def digest(self) -> str:
        """Return a hash that tells these cells from others."""
        made = hashlib.sha256(self._bytes)
        made.update(array("Q", self._ends).tobytes() if self._ends.typecode == "I" else self._ends.tobytes())
        made.update(b"" if self._kinds is None else self._kinds)
        made.update(repr([(number, str(each)) for number, each in self._objects.items()]).encode())
        return made.hexdigest()


class Constant(Sequence[Any]):
    """A column with one value in all of its `length` cells."""

    def __init__(self, value: Any, length: int) -> None:
        self.value, self.length = value, length
        self.is_text = isinstance(value, str)
        self.is_ascii, self.longest = str(value).isascii(), len(str(value))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: Any) -> Any:
        return [self.value] * len(range(self.length)[number]) if isinstance(number, slice) else self.value

    def at(self, number: int) -> Any:
        """Return the cell of row `number`, which is one of them."""
        return self.value

    def texts(self, first: int, last: int) -> list[str]:
        """Return the cells of the rows from `first` to before `last`."""
        return [self.value] * (last - first)

    def digest(self) -> str:
        """Return a hash that tells these cells from others."""
        return hashlib.sha256(json.dumps([self.value, self.length], default=str).encode()).hexdigest()


class _Absent:
    """The cell of a row that lacks the column."""

    def __repr__(self) -> str:
        return "Absent"


Absent = _Absent()


class Rows(Sequence[Row]):
    """The rows of a table: dicts, made when they are asked for, from one `Column` for each name."""

    def __init__(self, columns: Mapping[str, Column | Constant], length: int) -> None:
        self.columns, self.length = dict(columns), length

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Rows:
        """Return rows that are dicts, maybe with different keys, by column."""
        made = RowsBuilder()
        for row in rows:
            made.add(row)
        return made.rows()

    def __len__(self) -> int:
        return self.length

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as of a list

    @overload
    def __getitem__(self, number: int) -> Row: ...
    @overload
    def __getitem__(self, number: slice) -> list[Row]: ...
    def __getitem__(self, number: int | slice) -> Row | list[Row]:
        if isinstance(number, slice):
            return [self[each] for each in range(self.length)[number]]
        number = range(self.length)[number]
        row = {name: column.at(number) for name, column in self.columns.items()}
        return {name: cell for name, cell in row.items() if cell is not Absent} if Absent in row.values() else row

    def __iter__(self) -> Iterator[Row]:
        for number in range(self.length):
            yield self[number]

    def cell(self, number: int, name: str) -> Any:
        """Return one cell; None for a row without it."""
        column = self.columns.get(name)
        found = None if column is None else column.at(number)
        return None if found is Absent else found

    def texts(self, name: str, first: int, last: int) -> list[str] | None:
        """Return the cells of the rows from `first` to before `last`; None if not every cell of the column is text."""
        column = self.columns.get(name)
        return column.texts(first, last) if column is not None and column.is_text else None

    def has(self, number: int, name: str) -> bool:
        """Return whether a row has a cell of this name."""
        column = self.columns.get(name)
        return column is not None and column.at(number) is not Absent

    def most_characters(self, name: str) -> int | None:
        """Return at least the length of the longest cell of a column of ASCII text; None for any other."""
        column = self.columns.get(name)
        return column.longest if column is not None and column.is_text and column.is_ascii else None

    def may_hold_lists(self, name: str) -> bool:
        """Return whether a column has cells that are not text."""
        column = self.columns.get(name)
        return column is not None and not column.is_text

    def renamed(self, names: Mapping[str, str]) -> Rows:
        """Return the same rows with columns called by other `names`: {old: new}."""
        return Rows({names.get(name, name): column for name, column in self.columns.items()}, self.length)

    def with_columns(self, columns: Mapping[str, Column | Constant]) -> Rows:
        """Return the same rows with further `columns`, in place of those of the same names."""
        return Rows({**self.columns, **columns}, self.length)

    def digest(self) -> str:
        """Return a hash that tells these rows from others."""
        parts = [[name, column.digest()] for name, column in self.columns.items()]
        return hashlib.sha256(json.dumps([self.length, parts]).encode()).hexdigest()


class RowsBuilder:
    """Collects rows into columns."""

    def __init__(self) -> None:
        self._columns: dict[str, Column] = {}
        self._waiting: list[Row] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length + len(self._waiting)

    def add(self, row: Row) -> None:
        """Add a row."""
        self._waiting.append(row)
        if len(self._waiting) == CHUNK:
            self._flush()

    def _flush(self) -> None:
        rows, self._waiting = self._waiting, []
        for name in dict.fromkeys(name for row in rows for name in row):
            if name not in self._columns:
                self._columns[name] = _of_absent(self._length)
        for name, column in self._columns.items():
            column.extend([row.get(name, Absent) for row in rows])
        self._length += len(rows)

    def rows(self) -> Rows:
        """Return the rows."""
        self._flush()
        return Rows(self._columns, self._length)


def _of_absent(length: int) -> Column:
    column = Column()
    for first in range(0, length, CHUNK):
        column.extend([Absent] * min(CHUNK, length - first))
    return column


class RowsOfClips(ClipRows):
    """A row for each clip of the videos of a table."""

    values: Rows

    def cell(self, number: int, name: str) -> Any:
        """Return one cell; None for a row without it."""
        return self.values.cell(self.clips.row_of(number), name)

    def texts(self, name: str, first: int, last: int) -> list[str] | None:
        """Return None: rows that are clips are read one by one."""
        return None

    def has(self, number: int, name: str) -> bool:
        """Return whether a row has a cell of this name."""
        return self.values.has(self.clips.row_of(number), name)

    def most_characters(self, name: str) -> int | None:
        """Return at least the length of the longest cell of a column of ASCII text; None for any other."""
        return self.values.most_characters(name)

    def may_hold_lists(self, name: str) -> bool:
        """Return whether a column has cells that are not text."""
        return self.values.may_hold_lists(name)

    def digest(self) -> str:
        """Return a hash that tells these rows from others."""
        return hashlib.sha256(json.dumps([self.values.digest(), self.clips.counts]).encode()).hexdigest()


class JoinedRows(Sequence[Row]):
    """Rows of several tables, one after another."""

    def __init__(self, parts: Sequence[Rows | RowsOfClips]) -> None:
        self.parts = tuple(parts)
        self.starts = [0, *accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        rows, own = self._find(range(len(self))[number])
        return rows[own]

    def cell(self, number: int, name: str) -> Any:
        """Return one cell; None for a row without it."""
        rows, own = self._find(number)
        return rows.cell(own, name)

    def texts(self, name: str, first: int, last: int) -> list[str] | None:
        """Return None: rows of several tables are read one by one."""
        return None

    def has(self, number: int, name: str) -> bool:
        """Return whether a row has a cell of this name."""
        rows, own = self._find(number)
        return rows.has(own, name)

    def most_characters(self, name: str) -> int | None:
        """Return at least the length of the longest cell of a column of ASCII text; None for any other."""
        longest = [rows.most_characters(name) for rows in self.parts]
        return None if None in longest else max(each or 0 for each in longest)

    def may_hold_lists(self, name: str) -> bool:
        """Return whether a column has cells that are not text."""
        return any(rows.may_hold_lists(name) for rows in self.parts)

    def _find(self, number: int) -> tuple[Rows | RowsOfClips, int]:
        part = bisect_right(self.starts, number) - 1
        return self.parts[part], number - self.starts[part]


def _is_json(value: Any) -> bool:
    """Return whether JSON keeps a value as it is."""
    if type(value) in PLAIN:
        return True
    if type(value) is list:
        return all(map(_is_json, value))
    return type(value) is dict and all(type(name) is str and _is_json(each) for name, each in value.items())
