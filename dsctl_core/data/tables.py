"""Read csv, json and jsonl tables, with an error that names the line for each kind of mistake.

Values are not converted: a csv has no types, so every cell is text, and `NA`, `null` or `007` remain these strings.
Therefore csv is read with the standard library rather than with pandas.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from dsctl_core.data.problems import DataError
from dsctl_core.data.rows import Metadata, Row, kind_of, union_of_keys
from dsctl_core.files.json import JsonFault, Keys, decode_json, field_name


def read_csv(path: Path) -> Metadata:
    """Read a csv file; its first line has the column names."""
    columns: list[str] = []
    rows: list[Row] = []
    lines: list[int] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        start = 1  # the line on which the record starts; a record may span several lines
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
            raise DataError(
                f"{path} row {len(rows) + 1} (line {start}) cannot be read as csv: {error}",
                hint='put a text with a comma, a line break or a quote in double quotes, and write a quote in it as ""',
                kind="table",
            ) from error
    return Metadata(path, tuple(columns), tuple(rows), tuple(lines))


def read_json(path: Path) -> Metadata:
    """Read a json file with a list of objects."""
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
    return Metadata(path, union_of_keys(rows), tuple(rows), None)


def read_jsonl(path: Path) -> Metadata:
    """Read a jsonl file with one json object per line."""
    rows: list[Row] = []
    lines: list[int] = []
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                location = f"{path} row {len(rows) + 1} (line {number})"
                try:
                    row = _decode(line)
                except json.JSONDecodeError as error:
                    if not rows and line.lstrip().startswith("["):
                        hint = f"a list of objects is json: rename the file to {path.with_suffix('.json').name}"
                    else:
                        hint = _json_hint(line, error)
                    raise DataError(
                        f"{location}, column {error.colno}: {error.msg}", hint=hint, kind="table"
                    ) from error
                except JsonFault as fault:
                    raise _fault_of_row(location, fault, fault.keys) from fault
                _refuse_bad_object(location, row)
                rows.append(row)
                lines.append(number)
        except UnicodeDecodeError as error:
            raise _not_utf8(path) from error
    return Metadata(path, union_of_keys(rows), tuple(rows), tuple(lines))


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


def _wrong_cell_count(location: str, cells: list[str], columns: list[str]) -> DataError:
    if len(cells) > len(columns):
        hint = 'put a text with a comma in double quotes: a.png,"a red, round ball"'
    else:
        hint = f"add a value for {columns[len(cells)]!r}, or a comma for an empty one"
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
