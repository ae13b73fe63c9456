"""Write the rows of a table as text: csv, or json lines where a cell is a list or an object."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence

from dsctl_core.data.columns import Row


def suffix_for(rows: Sequence[Row]) -> str:
    """Return ".csv" if every cell of `rows` is a text, a number or nothing, else ".jsonl"."""
    plain = all(isinstance(value, str | int | float | None) for row in rows for value in row.values())
    return ".csv" if plain else ".jsonl"


def csv_text(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Return `rows` as csv, with a line of the names of `columns`."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[row.get(column) for column in columns] for row in rows])
    return stream.getvalue()


def jsonl_text(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Return `rows` as json lines; cells that a row lacks are left out."""
    kept = [{name: row[name] for name in columns if name in row} for row in rows]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)


WRITERS: dict[str, Callable[[Sequence[str], Sequence[Row]], str]] = {".csv": csv_text, ".jsonl": jsonl_text}
