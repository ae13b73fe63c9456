"""Metadata files (csv, json, jsonl) read into rows; every way in which one can be wrong is one clear error.

Values come out as they are written: a csv has no types, so each of its cells is text and `NA`, `null` or `007` stay
what they say. That is why the standard library reads the csv here, and not pandas.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsctl_core.errors import DsctlError, near_miss

Row = dict[str, Any]
METADATA_NAMES = ("metadata.csv", "metadata.json", "metadata.jsonl")
MEDIA_SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Metadata:
    """The rows of a metadata file and where each of them stands in it."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    lines: tuple[int, ...] | None  # line on which each row starts; None where lines say nothing (json)

    def place(self, row: int) -> str:
        """Say where row number `row` (from 0) is, counting from 1 as people and editors do."""
        line = "" if self.lines is None else f" (line {self.lines[row]})"
        return f"{self.path} row {row + 1}{line}"

    def require_columns(self, names: Iterable[str], hint: str | None = None) -> None:
        """Refuse metadata without one of the columns `names`; `hint` adds what else could be meant."""
        for name in names:
            if name not in self.columns:
                raise DsctlError(
                    f"{self.path} has no column {name!r} (its columns: {_listed(self.columns)})",
                    hint=_column_hint(name, self.columns) + (f", or {hint}" if hint else ""),
                )


def find_metadata(base_path: Path) -> Path:
    """Return the metadata file of a dataset folder, which must hold exactly one."""
    found = [base_path / name for name in METADATA_NAMES if (base_path / name).exists()]
    if len(found) == 1:
        return found[0]
    if found:
        raise DsctlError(
            f"{base_path} has several metadata files: {', '.join(path.name for path in found)}",
            hint="say which one to use with --dataset-metadata-path",
        )
    with explained_os_errors(base_path):
        names = sorted(entry.name for entry in base_path.iterdir())
    pictures = sum(name.lower().endswith(MEDIA_SUFFIXES) for name in names)
    guess = next((near for name in METADATA_NAMES if (near := near_miss(name, names))), None)
    raise DsctlError(
        f"{base_path} has no metadata.csv, metadata.json or metadata.jsonl ({pictures} pictures, {len(names)} entries)",
        hint=f"did you mean --dataset-metadata-path {base_path / guess}?"
        if guess
        else "write a metadata.csv with the columns image,prompt there, or give --dataset-metadata-path",
    )


def read_metadata(path: Path) -> Metadata:
    """Read a metadata file by its suffix; it must hold at least one row."""
    readers = {".csv": _read_csv, ".json": _read_json, ".jsonl": _read_jsonl}
    if path.suffix.lower() not in readers:
        raise DsctlError(
            f"{path} is not a metadata file that can be read (its suffix is {path.suffix!r})",
            hint=f"known: {', '.join(readers)}",
        )
    with explained_os_errors(path):
        if not path.is_file():
            path.stat()  # says what is wrong with a path that leads nowhere
            raise DsctlError(f"{path} is not a file", hint="give the path of a csv, json or jsonl file")
        metadata = readers[path.suffix.lower()](path)
    if not metadata.rows:
        if metadata.columns:
            raise DsctlError(f"{path} has a header but no rows", hint="write one row for each picture below the header")
        raise DsctlError(f"{path} is empty", hint="write one row for each picture: its file name and its prompt")
    return metadata


@contextmanager
def explained_os_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusal to give `path` into an error that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise DsctlError(f"{path} does not exist", hint="check the path; it is seen from the current folder") from error
    except PermissionError as error:
        raise DsctlError(f"{path} may not be read (permission denied)", hint=f"chmod u+r {path}") from error
    except OSError as error:
        raise DsctlError(f"{path} cannot be read: {error.strerror or error}", hint="check the path") from error


def _read_csv(path: Path) -> Metadata:
    columns: list[str] = []
    rows: list[Row] = []
    lines: list[int] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        start = 1  # a record may span lines: it starts one line after the one before it ended
        try:
            for cells in reader:
                if not cells:  # a blank line
                    start = reader.line_num + 1
                    continue
                if not columns:
                    columns = cells
                    _refuse_duplicate_columns(path, columns)
                elif len(cells) != len(columns):
                    raise _wrong_cell_count(f"{path} row {len(rows) + 1} (line {start})", cells, columns)
                else:
                    rows.append(dict(zip(columns, cells, strict=True)))
                    lines.append(start)
                start = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise _not_utf8(path) from error
        except csv.Error as error:
            raise DsctlError(
                f"{path} row {len(rows) + 1} (line {start}) cannot be read as csv: {error}",
                hint='a text with a comma, a line break or a quote goes in double quotes, and a quote inside is ""',
            ) from error
    return Metadata(path, tuple(columns), tuple(rows), tuple(lines))


def _read_json(path: Path) -> Metadata:
    text = _read_text(path)
    if not text.strip():
        return Metadata(path, (), (), None)
    try:
        rows = _decode(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            hint = f"one object per line is jsonl: rename the file to {path.with_suffix('.jsonl').name}"
        else:
            hint = _json_hint(text, error)
        raise DsctlError(f"{path} line {error.lineno}, column {error.colno}: {error.msg}", hint=hint) from error
    except (ValueError, RecursionError) as error:
        raise DsctlError(f"{path} cannot be read as json: {error}", hint="write plain json") from error
    if not isinstance(rows, list):
        raise DsctlError(
            f"{path} holds {_kind(rows)}, not a list of objects",
            hint='write it as [{"image": "a.png", "prompt": "..."}, ...]',
        )
    for number, row in enumerate(rows, 1):
        _refuse_bad_object(f"{path} row {number}", row)
    return Metadata(path, _union_of_keys(rows), tuple(rows), None)


def _read_jsonl(path: Path) -> Metadata:
    rows: list[Row] = []
    lines: list[int] = []
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                place = f"{path} row {len(rows) + 1} (line {number})"
                try:
                    row = _decode(line)
                except json.JSONDecodeError as error:
                    if not rows and line.lstrip().startswith("["):
                        hint = f"a list of objects is json: rename the file to {path.with_suffix('.json').name}"
                    else:
                        hint = _json_hint(line, error)
                    raise DsctlError(f"{place}, column {error.colno}: {error.msg}", hint=hint) from error
                except (ValueError, RecursionError) as error:
                    raise DsctlError(f"{place} cannot be read as json: {error}", hint="write plain json") from error
                _refuse_bad_object(place, row)
                rows.append(row)
                lines.append(number)
        except UnicodeDecodeError as error:
            raise _not_utf8(path) from error
    return Metadata(path, _union_of_keys(rows), tuple(rows), tuple(lines))


class _RepeatedKey(dict[str, Any]):
    """An object in which a key stands twice; it is refused where its row number is known."""

    key: str


def _decode(text: str) -> Any:
    def build(pairs: list[tuple[str, Any]]) -> Row:
        built = dict(pairs)
        if len(built) == len(pairs):
            return built
        repeated = _RepeatedKey(built)
        names = [name for name, _ in pairs]
        repeated.key = next(name for name in names if names.count(name) > 1)
        return repeated

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not a json value")

    return json.loads(text, object_pairs_hook=build, parse_constant=refuse)


def _refuse_bad_object(place: str, row: Any) -> None:
    if isinstance(row, _RepeatedKey):
        raise DsctlError(f"{place} has the key {row.key!r} twice", hint="keep one of the two")
    if not isinstance(row, dict):
        raise DsctlError(
            f"{place} is {_kind(row)}, not an object", hint='write it as {"image": "a.png", "prompt": ...}'
        )


def _refuse_duplicate_columns(path: Path, columns: list[str]) -> None:
    for place, name in enumerate(columns):
        first = columns.index(name)
        if first != place:
            raise DsctlError(
                f"{path} has the column {name!r} twice in its header (columns {first + 1} and {place + 1})",
                hint="rename or remove one of the two",
            )


def _wrong_cell_count(place: str, cells: list[str], columns: list[str]) -> DsctlError:
    if len(cells) > len(columns):
        hint = 'put a text that holds a comma in double quotes: a.png,"a red, round ball"'
    else:
        hint = f"give a value for {columns[len(cells)]!r}, or put the comma that marks it as empty"
    return DsctlError(f"{place} has {len(cells)} cells, but the header has {len(columns)}", hint=hint)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error


def _not_utf8(path: Path) -> DsctlError:
    """Find the line that a decoding error came from; the decoder itself only knows a place in its buffer."""
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return DsctlError(
            f"{path} line 1 is UTF-16, not UTF-8",
            hint="save it as UTF-8 (in Excel: 'CSV UTF-8'), or use iconv -f utf-16 -t utf-8",
        )
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            return DsctlError(
                f"{path} line {number} is not UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1}",
                hint="save it as UTF-8, for example with iconv -f latin1 -t utf-8",
            )
    return DsctlError(f"{path} is not UTF-8", hint="save it as UTF-8")


def _json_hint(text: str, error: json.JSONDecodeError) -> str:
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        return "the text ends in the middle of a value; was the file cut off?"
    return "correct the json there: double quotes, a comma between values and none after the last"


def _union_of_keys(rows: Iterable[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for row in rows for key in row))


def _column_hint(name: str, columns: tuple[str, ...]) -> str:
    separator = next((mark for mark in ";\t|" if len(columns) == 1 and mark in columns[0]), None)
    if separator is not None:
        return f"separate the columns by commas; this file seems to use {separator!r}"
    guess = near_miss(name, columns)
    if guess is not None:
        return f"rename the column {guess!r} to {name!r}"
    return f"the first line of a csv, or the keys of a json object, must name the columns: add {name!r}"


def _listed(columns: tuple[str, ...]) -> str:
    shown = ", ".join(repr(name) for name in columns[:12])
    return shown if len(columns) <= 12 else f"{shown} and {len(columns) - 12} more"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {value}")


def text_cell(value: Any) -> str:
    """Return `value` when it is a text that says something; refuse anything else rather than turn it into text."""
    if isinstance(value, str) and value.strip():
        if any("\ud800" <= character <= "\udfff" or character == "\0" for character in value):
            raise DsctlError(
                "the text holds a NUL or half a character (an unpaired surrogate)", hint="write the text again"
            )
        return value
    if value is None or isinstance(value, str):
        raise DsctlError("the cell is empty", hint="write a text there, or remove the row")
    raise DsctlError(f"the value is {_kind(value)}, not text", hint="put it in double quotes")
