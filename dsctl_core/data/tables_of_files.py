"""Parquet tables with the files themselves in a column, as datasets of Hugging Face have them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dsctl_core.data.columns import Column, Constant, Rows, RowsBuilder
from dsctl_core.data.problems import DataError, explained_os_errors
from dsctl_core.data.rows import Metadata
from dsctl_core.readable import counted
from dsctl_core.remote import anywhere
from dsctl_core.remote.archives import PARQUET
from dsctl_core.remote.parquet import file_names, holds_files

SPLIT = re.compile(r"([a-z]+)-\d+-of-\d+", re.IGNORECASE)  # data/train-00000-of-00004.parquet
TRAIN = "train"


def of_training(base_path: Path, tables: Sequence[Path]) -> list[Path]:
    """Return those of the Parquet files `tables` that are of the split "train", or all if there is no such split."""
    of_split = [path for path in tables if _split_of(base_path, path) == TRAIN]
    return of_split or list(tables)


def _split_of(base_path: Path, path: Path) -> str | None:
    named = SPLIT.fullmatch(path.stem)
    if named is not None:
        return named[1].lower()
    return next(
        (part for part in path.relative_to(base_path).parts[:-1] if part in (TRAIN, "test", "validation")), None
    )


def read_tables(base_path: Path, tables: Sequence[Path], read: Callable[[Path], Metadata]) -> Metadata:
    """Return the rows of all `tables`, in their order. Raises `DataError` for tables of different columns."""
    parts = [with_files(read(path), base_path, path) for path in tables]
    for path, part in zip(tables, parts, strict=True):
        if set(part.columns) != set(parts[0].columns):
            raise DataError(
                f"{path} has other columns than {tables[0]}: {', '.join(part.columns)}",
                hint="choose one of them with --dataset-metadata-path",
                kind="table",
            )
    made = RowsBuilder()
    for part in parts:
        for row in part.rows:
            made.add(row)
    layout = f", in {counted(len(tables), 'Parquet file')}"
    return Metadata(base_path, parts[0].columns, made.rows(), None, layout)


def with_files(metadata: Metadata, base_path: Path, path: Path) -> Metadata:
    """Return a Parquet table with names in its columns of files: `TABLE.parquet/ROW/COLUMN/NAME`, as of a folder."""
    if path.suffix.lower() != PARQUET or not isinstance(metadata.rows, Rows):
        return metadata
    with explained_os_errors(path), anywhere.local(path) as copy:
        columns = _columns_of_files(copy)
        names = {name: list(file_names(copy, name)) for name in columns}
    if not columns:
        return metadata
    inside = os.path.relpath(path, base_path)
    if inside.startswith("..") or path.suffix != PARQUET:
        return metadata  # whoever uses the column is told
    cells: dict[str, Column | Constant] = {
        name: Column(f"{Path(inside).as_posix()}/{row}/{name}/{file}" for row, file in enumerate(names[name]))
        for name in columns
    }
    return replace(metadata, rows=metadata.rows.with_columns(cells))


def _columns_of_files(table: Path) -> list[str]:
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(table)
    return [field.name for field in schema if holds_files(field.type) and "/" not in field.name]
