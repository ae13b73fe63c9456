"""UnifiedDataset: the rows of a metadata file with their pictures loaded, as a plain sequence."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

from dsctl_core.data.images import ImageCropAndResize, LoadImage
from dsctl_core.data.metadata import Metadata, Row, find_metadata, read_metadata, text_cell
from dsctl_core.data.operators import Chain, Operator, ToAbsolutePath
from dsctl_core.errors import DsctlError, UsageError, unknown_name

TEXT_COLUMNS = ("prompt",)


class UnifiedDataset(Sequence[Row]):
    """The rows of a metadata file, `repeat` times over; a row is read, checked and loaded when it is asked for.

    A row is a dict of the metadata's columns in which those named in `data_file_keys` went through an operator:
    that of `special_operator_map` if the column is in it, else `main_data_operator`, by default an image as large
    as it is. `row["_row"]` is the number of the row in the metadata, from 0; `place(row)` says where that is.
    """

    def __init__(
        self,
        base_path: str | Path,
        metadata_path: str | Path | None = None,
        repeat: int = 1,
        data_file_keys: str | Iterable[str] = ("image",),
        main_data_operator: Callable[[Any], Any] | None = None,
        special_operator_map: Mapping[str, Callable[[Any], Any]] | None = None,
    ) -> None:
        if repeat < 1:
            raise UsageError(f"the dataset cannot be repeated {repeat} times", hint="use a repeat of 1 or more")
        self.base_path = _existing_folder(base_path)
        self.repeat = repeat
        self.data_file_keys = _column_names(data_file_keys)
        self.metadata: Metadata = read_metadata(
            find_metadata(self.base_path) if metadata_path is None else _existing_file(metadata_path, self.base_path)
        )
        self.metadata.require_columns(self.data_file_keys, hint="name the columns of files with --data-file-keys")
        special = dict(special_operator_map or {})
        for key in special:
            if key not in self.data_file_keys:
                raise unknown_name("column in special_operator_map", key, list(self.data_file_keys))
        main = main_data_operator or self.default_image_operator(self.base_path)
        self.operators = {key: special.get(key, main) for key in self.data_file_keys}

    @staticmethod
    def default_image_operator(
        base_path: str | Path = "",
        max_pixels: int | None = None,
        height: int | None = None,
        width: int | None = None,
        height_division_factor: int = 16,
        width_division_factor: int = 16,
    ) -> Chain:
        """Return the operator from a file name below `base_path` to an RGB picture of a size the model takes."""
        resize = ImageCropAndResize(height, width, max_pixels, height_division_factor, width_division_factor)
        return ToAbsolutePath(base_path) >> LoadImage() >> resize

    def __len__(self) -> int:
        return len(self.metadata.rows) * self.repeat

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        number = range(len(self))[index] % len(self.metadata.rows)  # range: negative numbers, IndexError at the end
        row = dict(self.metadata.rows[number])
        for key in TEXT_COLUMNS:
            if key in self.metadata.columns:
                with self.placed(number, key):
                    row[key] = text_cell(row.get(key))
        for key, operator in self.operators.items():
            with self.placed(number, key):
                row[key] = operator(row.get(key))
        row["_row"] = number
        return row

    def preview(self, number: int, key: str) -> Any:
        """Check the cell `key` of row `number` as loading would, but cheaply; return what its operator's preview does.

        That is the (width, height) it will be loaded with for an image, None for an operator that is a plain function.
        """
        operator = self.operators[key]
        with self.placed(number, key):
            return operator.preview(self.metadata.rows[number].get(key)) if isinstance(operator, Operator) else None

    def place(self, number: int) -> str:
        """Say where row `number` (from 0, as in `row["_row"]`) is in the metadata."""
        return self.metadata.place(number)

    @contextmanager
    def placed(self, number: int, key: str) -> Iterator[None]:
        """Add row and value to an error that comes from the cell `key` of row `number`."""
        try:
            yield
        except DsctlError as error:
            row = self.metadata.rows[number]
            shown = f"{key} {reprlib.repr(row[key])}" if key in row else key
            raise DsctlError(f"{self.place(number)}, {shown}: {error.problem}", hint=error.hint) from error


def _existing_folder(base_path: str | Path) -> Path:
    if not str(base_path):
        raise UsageError("the dataset's base path is empty", hint="give the folder that holds the pictures")
    path = Path(base_path)
    if path.is_dir():
        return path
    if path.exists():
        raise DsctlError(f"the dataset's base path {path} is not a folder", hint="give the folder that holds the file")
    raise DsctlError(f"the dataset folder {path} does not exist", hint="check the path given with --dataset-base-path")


def _existing_file(metadata_path: str | Path, base_path: Path) -> Path:
    path = Path(metadata_path)
    if not path.exists() and not path.is_symlink():
        inside = base_path / path
        hint = f"did you mean {inside}?" if inside.is_file() else "check the path given with --dataset-metadata-path"
        raise DsctlError(f"the metadata file {str(metadata_path)!r} does not exist", hint=hint)
    return path


def _column_names(data_file_keys: str | Iterable[str]) -> tuple[str, ...]:
    keys = data_file_keys.split(",") if isinstance(data_file_keys, str) else list(data_file_keys)
    names = tuple(key.strip() for key in keys)
    if not all(names):
        raise UsageError(
            f"data_file_keys {data_file_keys!r} names an empty column", hint="separate column names by single commas"
        )
    repeated = next((name for place, name in enumerate(names) if names.index(name) != place), None)
    if repeated is not None:
        raise UsageError(f"data_file_keys names the column {repeated!r} twice", hint="name each column once")
    return names
