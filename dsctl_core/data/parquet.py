"""Reader of Parquet tables; pyarrow is imported here and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsctl_core.data.problems import DataError
from dsctl_core.data.rows import BadCell, Metadata


def read_parquet(path: Path) -> Metadata:
    """Read a table whose cells are texts, numbers and lists of them.

    A column that holds bytes or objects (as of a dataset with its pictures inside the table) is not loaded; using it
    is an error.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
        plain = [field.name for field in schema if not _holds_bytes(field.type)]
        _refuse_duplicates(path, schema.names)
        # Row by row: a missing value is None there, where pandas would make a number of it.
        table = pyarrow.parquet.read_table(path, columns=plain)
        rows: list[dict[str, Any]] = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(
            f"{path} cannot be read as parquet: {' '.join(str(error).split())}",
            hint="copy or download the file again",
            kind="table",
        ) from error
    inside = BadCell(
        DataError(
            "the column holds the files themselves, not their names",
            hint="save them as files beside the table, and name them in the column",
            kind="table",
        )
    )
    for name in schema.names:
        if name not in plain:
            for row in rows:
                row[name] = inside
    return Metadata(path, tuple(schema.names), tuple(rows), None)


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _holds_bytes(kind.value_type)
    return (
        types.is_struct(kind)
        or types.is_map(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
    )


def _refuse_duplicates(path: Path, names: list[str]) -> None:
    repeated = next((name for place, name in enumerate(names) if names.index(name) != place), None)
    if repeated is not None:
        raise DataError(
            f"{path} has the column {repeated!r} twice", hint="rename or remove one of the two", kind="table"
        )
