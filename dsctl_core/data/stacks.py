"""Read columns with several files in a row, such as layers, and check that pictures that lie on each other agree."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dsctl_core.data.problems import DataError, explained_os_errors
from dsctl_core.remote import anywhere

MOST_FILES = 64  # of one cell; more is a mistake, such as a folder with the files of all rows
DIGITS = re.compile(r"(\d+)")

Size = tuple[int, int]  # (width, height)


def files_of_cell(cell: Any, to_path: Callable[[str], Path]) -> Any:
    """Return the list of file names in a cell that is a list, the name of a folder, or the name of one file.

    The files of a folder are sorted by name, with numbers in the names as numbers; hidden files are left out. A cell of
    another type is returned unchanged. Raises `DataError` for an empty folder, and for more than `MOST_FILES` files.
    """
    names = cell
    if isinstance(cell, str):
        folder = to_path(cell)
        names = [f"{cell.rstrip('/')}/{name}" for name in names_in(folder)] if anywhere.is_dir(folder) else [cell]
        if not names:
            raise DataError(f"the folder {folder} is empty", hint="add its files, or remove the row", kind="list")
    if isinstance(names, list | tuple) and len(names) > MOST_FILES:
        raise DataError(
            f"{len(names)} files, but a row has at most {MOST_FILES}",
            hint="give each row a folder, or a list, of its own files",
            kind="list",
        )
    return names


def names_in(folder: Path) -> list[str]:
    """Return the names in `folder` without hidden ones, sorted with numbers as numbers: 2.png before 10.png."""
    with explained_os_errors(folder):
        names = [each.name for each in anywhere.inside(folder) if not each.name.startswith(".")]
    return sorted(
        names,
        key=lambda name: [
            (part.isdigit(), int(part) if part.isdigit() else part) for part in filter(None, DIGITS.split(name))
        ],
    )


def find_odd_size(sizes: Mapping[str, Sequence[Size]]) -> tuple[str, DataError] | None:
    """Return the first column with a picture of another size than the first picture, with the error; None for none.

    `sizes` are those of the files of a row, by column, before any resizing: pictures that lie on each other must be
    cropped and scaled alike.
    """
    listed = [(key, size) for key, own in sizes.items() for size in own]
    for key, size in listed:
        if size != listed[0][1]:
            (across, down), (width, height) = listed[0][1], size
            return key, DataError(
                f"a picture of {width}x{height} pixels, but {listed[0][0]} has {across}x{down}",
                hint="give the pictures of a row, which lie on each other, one size",
                kind="size",
            )
    return None
