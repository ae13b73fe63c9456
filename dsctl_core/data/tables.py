"""Read csv, json and jsonl tables, with an error that names the line for each kind of mistake.

Values are not converted: a csv has no types, so every cell is text, and `NA`, `null` or `007` remain these strings.
Therefore csv is read with the standard library rather than with pandas.
"""

from __future__ import annotations

import csv
import json
import re
from array import array
from pathlib import Path
from typing import Any

from dsctl_core.data.columns import CHUNK, Column, Rows, RowsBuilder
from dsctl_core.data.problems import DataError
from dsctl_core.data.rows import Metadata, kind_of
from dsctl_core.files.json import JsonFault, Keys, decode_json, field_name

# What may stand between the cells of a csv: Excel writes semicolons where the comma is the decimal point.
NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
SEPARATORS = tuple(NAMES)


def read_csv(path: Path) -> Metadata:
    """Read a csv file; its first line has the column names. The separator is that of the header; see `_separator`."""
    try:
        separator, skipped = _separator(path)
        return _read_separated(path, separator, skipped)
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error


def _separator(path: Path) -> tuple[str, int]:
    """Return the separator of a table, and the number of lines before its header.

    A line `sep=;` before the header, which Excel writes, decides. Otherwise the separator is the one that divides the
    header; the names of columns have none of the others in them. If several divide it, that one is the separator with
    which all rows have as many cells as the header. A comma is the separator of all other tables.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = next((line for line in file if line.strip()), "")
    declared = re.fullmatch(r'"?sep=([,;|\t])"?\s*', first, re.IGNORECASE)
    if declared is not None:
        return declared[1], 1
    dividing = [each for each in SEPARATORS if _divides(each, first)]
    if len(dividing) > 1:
        dividing = [each for each in dividing if _has_even_rows(path, each)]
    return (dividing[0] if len(dividing) == 1 else ","), 0


def _divides(separator: str, line: str) -> bool:
    try:
        return len(next(csv.reader([line], delimiter=separator), [])) > 1
    except csv.Error:
        return False


def _has_even_rows(path: Path, separator: str) -> bool:
    try:
        _read_separated(path, separator, 0)
    except DataError:
        return False
    return True


def _read_separated(path: Path, separator: str, skipped: int) -> Metadata:
    """Read a table with one separator; `skipped` is the number of records before the header."""
    columns: list[str] = []
    held: list[Column] = []
    waiting: list[list[str]] = []  # rows that are not in the columns yet
    lines = array("q")
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True, delimiter=separator)
        start = 1  # the line on which the record starts; a record may span several lines
        try:
            for cells in reader:
                if not cells:  # a blank line
                    pass
                elif skipped:
                    skipped -= 1
                elif not columns:
                    columns = cells
                    held = [Column() for _ in columns]
                    _refuse_duplicate_columns(path, columns)
                elif len(cells) != len(columns):
                    location = f"{path} row {len(lines) + 1} (line {start})"
                    raise _wrong_cell_count(location, cells, columns, separator)
                else:
                    waiting.append(cells)
                    lines.append(start)
                    if len(waiting) == CHUNK:
                        _put(waiting, held)
                start = reader.line_num + 1
        except csv.Error as error:
            mark = NAMES[separator]
            raise DataError(
                f"{path} row {len(lines) + 1} (line {start}) cannot be read as csv: {error}",
                hint=f"put a text with a {mark}, a line break or a quote in double quotes, "
                'and write a quote in it as ""',
                kind="table",
            ) from error
    about = "" if separator == "," else f", separated by {NAMES[separator]}s"
    _put(waiting, held)
    return Metadata(path, tuple(columns), Rows(dict(zip(columns, held, strict=True)), len(lines)), lines, about)


def _put(waiting: list[list[str]], held: list[Column]) -> None:
    """Move rows into their columns."""
    for column, cells in zip(held, zip(*waiting, strict=True), strict=bool(waiting)):
        column.extend(cells)
    waiting.clear()


def read_json(path: Path) -> Metadata:
    """Read a json file with a list of objects."""
    text = _read_text(path)
    if not text.strip():
        return Metadata(path, (), Rows({}, 0), None)
    try:
        rows = _decode(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            hint = f"one object per line is jsonl: rename the file to {path.with_suffix('.jsonl').name}"
        else:
            hint = _json_hint(text, error)
        raise DataError(
            f"{path} line {error.lineno}, column {error.colno}: {error.msg}", hint=hint, kind="table"
        ) from error
    except JsonFault as fault:
        number, *keys = fault.keys or (None,)
        location = str(path) if not isinstance(number, int) else f"{path} row {number + 1}"
        raise _fault_of_row(location, fault, tuple(keys)) from fault
    if not isinstance(rows, list):
        raise DataError(
            f"{path} is {kind_of(rows)}, not a list of objects",
            hint='write it as [{"image": "a.png", "prompt": "..."}, ...]',
            kind="table",
        )
    for number, row in enumerate(rows, 1):
        _refuse_bad_object(f"{path} row {number}", row)
    found = Rows.of(rows)
    return Metadata(path, tuple(found.columns), found, None)


def read_jsonl(path: Path) -> Metadata:
    """Read a jsonl file with one json object per line."""
    rows = RowsBuilder()
    lines = array("q")
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                location = f"{path} row {len(rows) + 1} (line {number})"
                try:
                    row = _decode(line)
                except json.JSONDecodeError as error:
                    if not len(rows) and line.lstrip().startswith("["):
                        hint = f"a list of objects is json: rename the file to {path.with_suffix('.json').name}"
                    else:
                        hint = _json_hint(line, error)
                    raise DataError(
                        f"{location}, column {error.colno}: {error.msg}", hint=hint, kind="table"
                    ) from error
                except JsonFault as fault:
                    raise _fault_of_row(location, fault, fault.keys) from fault
                _refuse_bad_object(location, row)
                rows.add(row)
                lines.append(number)
        except UnicodeDecodeError as error:
            raise _not_utf8(path) from error
    found = rows.rows()
    return Metadata(path, tuple(found.columns), found, lines)


def _fault_of_row(location: str, fault: JsonFault, keys: Keys) -> DataError:
    """Return the error for a value in the row at `location`, to which `keys` lead."""
    where = f"{location}, {field_name(keys)}," if keys else location
    hint = "write plain json" if fault.repeated is None else "keep one of the two"
    return DataError(f"{where} {fault.fault}", hint=hint, kind="table")


def _decode(text: str) -> Any:
    # A text that cannot be written is a problem of its row, found where the row is used.
    return decode_json(text, any_text=True)


def _refuse_bad_object(location: str, row: Any) -> None:
    if not isinstance(row, dict):
        raise DataError(
            f"{location} is {kind_of(row)}, not an object",
            hint='write it as {"image": "a.png", "prompt": ...}',
            kind="table",
        )


def _refuse_duplicate_columns(path: Path, columns: list[str]) -> None:
    for index, name in enumerate(columns):
        first = columns.index(name)
        if first != index:
            raise DataError(
                f"{path} has the column {name!r} twice in its header (columns {first + 1} and {index + 1})",
                hint="rename or remove one of the two",
                kind="table",
            )


def _wrong_cell_count(location: str, cells: list[str], columns: list[str], separator: str) -> DataError:
    if len(cells) > len(columns):
        example = f'a.png{separator}"a red{separator} round ball"' if separator != "\t" else '"a red ball"'
        hint = f"put a text with a {NAMES[separator]} in double quotes: {example}"
    else:
        hint = f"add a value for {columns[len(cells)]!r}, or a {NAMES[separator]} for an empty one"
    return DataError(f"{location} has {len(cells)} cells, but the header has {len(columns)}", hint=hint, kind="table")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error


def _not_utf8(path: Path) -> DataError:
    """Return the error for the first line that is not UTF-8; the decoder only knows the position in its buffer."""
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return DataError(
            f"{path} line 1 is UTF-16, not UTF-8",
            hint="save it as UTF-8 (in Excel: 'CSV UTF-8'), or use iconv -f utf-16 -t utf-8",
            kind="table",
        )
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            return DataError(
                f"{path} line {number} is not UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1}",
                hint="save it as UTF-8, for example with iconv -f latin1 -t utf-8",
                kind="table",
            )
    return DataError(f"{path} is not UTF-8", hint="save it as UTF-8", kind="table")


def _json_hint(text: str, error: json.JSONDecodeError) -> str:
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        return "the text ends in the middle of a value; is the file cut off?"
    return "correct the json: double quotes, a comma between values and none after the last"
