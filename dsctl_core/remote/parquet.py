"""Cells of a Parquet table with the bytes of a file in them, as Hugging Face's images have: {bytes, path}.

A cell cannot be read without its row group. So the column of a group is taken out once, as an Arrow file among the
local copies, in which a cell is found without reading the others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from dsctl_core.remote.local import local_copies

BYTES, PATH = "bytes", "path"  # the fields of such a cell


def holds_files(arrow_type: Any) -> bool:
    """Return whether the cells of a column of this type are files: bytes, or a struct with bytes in it."""
    from pyarrow import types

    if types.is_struct(arrow_type):
        field = arrow_type.field(BYTES) if arrow_type.get_field_index(BYTES) >= 0 else None
        return field is not None and holds_files(field.type) and not types.is_struct(field.type)
    return bool(types.is_binary(arrow_type) or types.is_large_binary(arrow_type))


def file_names(table: Path, column: str) -> Iterator[str]:
    """Yield for each row the name of the file in its cell, "file" where it has none; the bytes are not read."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(table) as file:
        kind = file.schema_arrow.field(column).type
        has_path = hasattr(kind, "get_field_index") and kind.get_field_index(PATH) >= 0
        if not has_path:
            yield from ("file" for _ in range(file.metadata.num_rows))
            return
        for batch in file.iter_batches(columns=[f"{column}.{PATH}"]):
            for cell in batch.to_pydict()[column]:
                name = Path(str((cell or {}).get(PATH) or "")).name
                yield name if name.isprintable() and name not in ("", "..") else "file"


@lru_cache(maxsize=64)
def group_starts(table: Path, state: str) -> tuple[int, ...]:
    """Return the first row of each row group of the local file `table`, and the number of all rows."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(table) as file:
        counts = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    return tuple(accumulate(counts, initial=0))


def read_cell(table: Path, state: str, row: int, column: str) -> bytes:
    """Return the bytes in a cell; `state` tells the content of the local file `table` from others.

    Raises FileNotFoundError for a row without a file.
    """
    import pyarrow
    import pyarrow.parquet

    starts = group_starts(table, state)
    group = bisect_right(starts, row) - 1

    def take_out(target: Path) -> None:
        with pyarrow.parquet.ParquetFile(table) as file:
            kind = file.schema_arrow.field(column).type
            only = f"{column}.{BYTES}" if pyarrow.types.is_struct(kind) else column
            part = file.read_row_group(group, columns=[only])
        with pyarrow.OSFile(str(target), "wb") as sink, pyarrow.ipc.new_file(sink, part.schema) as writer:
            writer.write_table(part)

    key = f"column {column} of group {group}\n{state}"
    with local_copies().made(key, None, ".arrow", take_out) as pack, pyarrow.memory_map(str(pack)) as source:
        cell = pyarrow.ipc.open_file(source).read_all()[column][row - starts[group]].as_py()
    content = cell.get(BYTES) if isinstance(cell, dict) else cell
    if content is None:
        raise FileNotFoundError(f"row {row + 1} has no file in {column}")
    return bytes(content)
