"""Read Parquet tables; `dsctl_core.remote.parquet` reads the files in them."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

from dsctl_core.data.columns import CHUNK, Constant, Rows, RowsBuilder
from dsctl_core.data.problems import DataError
from dsctl_core.data.rows import BadCell, Metadata
from dsctl_core.remote.parquet import holds_files


def read_parquet(path: Path) -> Metadata:
    """Read a Parquet table of texts, numbers and lists of them.

    A column of bytes or structs (a dataset with the images in the table, for example) is not loaded: its cells are
    `BadCell`s, which raise `DataError` when they are used.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
        loaded = [field.name for field in schema if not _holds_bytes(field.type)]
        _refuse_duplicates(path, schema.names)
        made = RowsBuilder()
        with pyarrow.parquet.ParquetFile(path) as file:
            count = file.metadata.num_rows
            for batch in file.iter_batches(CHUNK, columns=loaded) if loaded else ():
                # `to_pylist` keeps a missing value as None; pandas would turn it into NaN.
                for row in batch.to_pylist():
                    made.add(row)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(
            f"{path} cannot be read as parquet: {' '.join(str(error).split())}",
            hint="copy or download the file again",
            kind="table",
        ) from error
    found = Rows(made.rows().columns, count)
    files = {field.name: Constant(_unread(field.type), count) for field in schema if field.name not in loaded}
    return Metadata(path, tuple(schema.names), found.with_columns(files), None)


def _unread(arrow_type: Any) -> BadCell:
    if holds_files(arrow_type):
        problem = "the column has the files themselves, which are read from a .parquet file below the dataset folder"
        hint = "give the folder of the table as --dataset-base-path"
    else:
        problem = f"the column has cells of the type {reprlib.repr(str(arrow_type))}, which is neither text nor a file"
        hint = "write a column for each file of a row, of bytes or {bytes, path}, or name files of the dataset folder"
    return BadCell(DataError(problem, hint=hint, kind="table"))


def _holds_bytes(arrow_type: Any) -> bool:
    from pyarrow import types

    if types.is_list(arrow_type) or types.is_large_list(arrow_type) or types.is_fixed_size_list(arrow_type):
        return _holds_bytes(arrow_type.value_type)
    return (
        types.is_struct(arrow_type)
        or types.is_map(arrow_type)
        or types.is_binary(arrow_type)
        or types.is_large_binary(arrow_type)
        or types.is_fixed_size_binary(arrow_type)
    )


def _refuse_duplicates(path: Path, names: list[str]) -> None:
    repeated = next((name for index, name in enumerate(names) if names.index(name) != index), None)
    if repeated is not None:
        raise DataError(
            f"{path} has the column {repeated!r} twice", hint="rename or remove one of the two", kind="table"
        )
