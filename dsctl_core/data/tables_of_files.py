"""Parquet tables with the files themselves in a column, as datasets of Hugging Face have them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsctl_core.data.columns import Column, Constant, Rows, RowsBuilder
from dsctl_core.data.problems import DataError, explained_os_errors
from dsctl_core.data.rows import BadCell, LeftOut, Metadata
from dsctl_core.readable import counted
from dsctl_core.remote import anywhere
from dsctl_core.remote.archives import PARQUET
from dsctl_core.remote.parquet import Cell, file_cells, holds_files

# data/train-00000-of-00004.parquet, also with a fingerprint behind it
SPLIT = re.compile(r"(\w[\w.-]*?)-(\d+)-of-(\d+)(?:-[0-9a-f]{8,})?", re.IGNORECASE)
TRAIN = "train"
MOST_PARTS = 1_000_000


def of_training(base_path: Path, tables: Sequence[Path]) -> tuple[list[Path], LeftOut]:
    """Return those of the Parquet files `tables` that are of the split "train", or all if there is no such split.

    What is left out of other splits comes second. Raises `DataError` if the names say that a file is missing.
    """
    splits = {path: _split_of(base_path, path) for path in tables}
    chosen = [path for path in tables if splits[path] == TRAIN] or list(tables)
    require_all_parts(chosen)
    others = Counter(f"{PARQUET} of {_named(splits[path])}" for path in tables if path not in set(chosen))
    return chosen, LeftOut(tuple(sorted(others.items(), key=lambda item: (-item[1], item[0]))))


def _named(split: str | None) -> str:
    return "no split" if split is None else f"the split {split!r}"


def require_all_parts(files: Sequence[Path]) -> None:
    """Raise `DataError` unless all of `train-00000-of-00004`, ... are there, of those of which one is."""
    parts: dict[tuple[Path, str, str], dict[int, Path]] = {}
    for path in files:
        named = SPLIT.fullmatch(path.stem)
        if named is None:
            continue
        found = parts.setdefault((path.parent, named[1], named[3]), {})
        if int(named[2]) in found:
            raise DataError(
                f"{path} and {found[int(named[2])].name} are both part {named[2]} of {named[3]}",
                hint="remove the one that is older",
                kind="table",
            )
        found[int(named[2])] = path
    for (folder, name, count), found in parts.items():
        first = 1 if int(count) in found and 0 not in found else 0
        missing = [number for number in range(first, first + min(int(count), MOST_PARTS)) if number not in found]
        if missing or len(found) != int(count):
            example = next(iter(found.values()))
            lacking = f"{name}-{missing[0]:0{len(count)}}-of-{count}{example.suffix}" if missing else "a part"
            raise DataError(
                f"{folder} has {len(found)} of the {int(count)} files {name}-...-of-{count}: {lacking} is missing",
                hint="copy or download the missing files, or choose one file with --dataset-metadata-path",
                kind="missing file",
            )


def _split_of(base_path: Path, path: Path) -> str | None:
    named = SPLIT.fullmatch(path.stem)
    if named is not None:
        return named[1].lower()
    return next(
        (part for part in path.relative_to(base_path).parts[:-1] if part in (TRAIN, "test", "validation")), None
    )


def read_tables(base_path: Path, files: Sequence[Path], read: Callable[[Path], Metadata]) -> Metadata:
    """Return the rows of those of the Parquet `files` that are for training, in their order.

    Raises `DataError` for tables of different columns, and where one is missing.
    """
    tables, left_out = of_training(base_path, files)
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
    return Metadata(base_path, parts[0].columns, made.rows(), None, layout, left_out=left_out)


def with_files(metadata: Metadata, base_path: Path, path: Path) -> Metadata:
    """Return a Parquet table with names in its columns of files: `TABLE.parquet/ROW/COLUMN/NAME`, as of a folder."""
    if path.suffix.lower() != PARQUET or not isinstance(metadata.rows, Rows):
        return metadata
    with explained_os_errors(path), anywhere.local(path) as copy:
        columns = _columns_of_files(copy)
        found = {name: list(file_cells(copy, name)) for name in columns}
    if not columns:
        return metadata
    inside = os.path.relpath(path, base_path)
    if inside.startswith("..") or path.suffix != PARQUET:
        return metadata  # whoever uses the column is told
    cells: dict[str, Column | Constant] = {
        name: Column(_value(cell, f"{Path(inside).as_posix()}/{row}/{name}") for row, cell in enumerate(found[name]))
        for name in columns
    }
    return replace(metadata, rows=metadata.rows.with_columns(cells))


def _value(cell: Cell, folder: str) -> Any:
    """Return the name of the file in a cell, None for an empty one."""
    if cell.has_bytes:
        return f"{folder}/{cell.name}"
    if not cell.path:
        return None
    return BadCell(
        DataError(
            f"the cell has the path {cell.path!r} and no bytes",
            hint="write the bytes of the file into the table, or remove the row",
            kind="missing file",
        )
    )


def _columns_of_files(table: Path) -> list[str]:
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(table)
    return [field.name for field in schema if holds_files(field.type) and "/" not in field.name]
