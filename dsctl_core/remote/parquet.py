"""Cells of a Parquet table with the bytes of a file in them, as Hugging Face's images have: {bytes, path}.

A cell cannot be read without its row group. So the column of a group is taken out once, as an Arrow file among the
local copies, in which a cell is found without reading the others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import accumulate, repeat
from pathlib import Path
from typing import Any, NamedTuple

from dsctl_core.errors import DsctlError
from dsctl_core.remote.local import Opener, local_copies

BYTES, PATH = "bytes", "path"  # the fields of such a cell
WIDE, NARROW = 65536, 64  # cells that are read at a time, of paths and of bytes


def holds_files(arrow_type: Any) -> bool:
    """Return whether the cells of a column of this type are files: bytes, or a struct with bytes in it."""
    from pyarrow import types

    if types.is_struct(arrow_type):
        field = arrow_type.field(BYTES) if arrow_type.get_field_index(BYTES) >= 0 else None
        return field is not None and holds_files(field.type) and not types.is_struct(field.type)
    return bool(types.is_binary(arrow_type) or types.is_large_binary(arrow_type))


class Cell(NamedTuple):
    """A cell of a column of files: the path in it, "" for none, and whether it has the bytes of a file."""

    path: str
    has_bytes: bool

    @property
    def name(self) -> str:
        """The last part of the path, "file" where that is no name."""
        name = Path(self.path).name
        return name if name.isprintable() and name not in ("", "..") else "file"


def file_cells(table: Path, column: str) -> Iterator[Cell]:
    """Yield the cells of a column of files. The bytes are read only where some may be missing."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(table) as file:
        kind = file.schema_arrow.field(column).type
        is_struct = pyarrow.types.is_struct(kind)
        has_path = is_struct and kind.get_field_index(PATH) >= 0
        content = f"{column}.{BYTES}" if is_struct else column
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            paths: Iterable[str] = repeat("", count)
            if has_path:
                read = _cells(file, group, column, f"{column}.{PATH}", WIDE)
                paths = (str((cell or {}).get(PATH) or "") for cell in read)
            there: Iterable[bool] = repeat(True, count)
            if _nulls(file.metadata.row_group(group), content) != 0:
                read = _cells(file, group, column, content, NARROW)
                there = ((cell.get(BYTES) if isinstance(cell, dict) else cell) is not None for cell in read)
            yield from map(Cell, paths, there)


def _cells(file: Any, group: int, column: str, only: str, size: int) -> Iterator[Any]:
    for batch in file.iter_batches(size, row_groups=[group], columns=[only]):
        yield from batch.column(column).to_pylist()


def _nulls(group: Any, column: str) -> int | None:
    """Return how many cells of a row group are missing, None where the table does not say."""
    for number in range(group.num_columns):
        if group.column(number).path_in_schema == column:
            about = group.column(number).statistics
            return about.null_count if about is not None and about.has_null_count else None
    return None


@lru_cache(maxsize=64)
def group_starts(table: Path, state: str) -> tuple[int, ...]:
    """Return the first row of each row group of the local file `table`, and the number of all rows."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(table) as file:
        counts = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    return tuple(accumulate(counts, initial=0))


def read_cell(table: Path, state: str, row: int, column: str) -> bytes:
    """Return the bytes in a cell; `state` tells the content of the local file `table` from others.

    Raises DsctlError for a row without a file.
    """
    import pyarrow
    import pyarrow.parquet

    starts = group_starts(table, state)
    group = bisect_right(starts, row) - 1

    def take_out(new: Opener) -> None:
        with pyarrow.parquet.ParquetFile(table) as file:
            kind = file.schema_arrow.field(column).type
            only = f"{column}.{BYTES}" if pyarrow.types.is_struct(kind) else column
            part = file.read_row_group(group, columns=[only])
        counted = pyarrow.MockOutputStream()
        _write(part, counted)
        with new(counted.size()) as stream:
            _write(part, stream)

    key = f"column {column} of group {group}\n{state}"
    with local_copies().made(key, ".arrow", take_out) as pack, pyarrow.memory_map(str(pack)) as source:
        cell = pyarrow.ipc.open_file(source).read_all()[column][row - starts[group]].as_py()
    content = cell.get(BYTES) if isinstance(cell, dict) else cell
    if content is None:
        raise DsctlError(f"row {row + 1} of {table} has no file in {column}", hint="remove the row")
    return bytes(content)


def _write(table: Any, sink: Any) -> None:
    """Write an Arrow table as a file."""
    import pyarrow

    with pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
