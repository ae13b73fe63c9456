"""UnifiedDataset: the rows of a dataset with their pictures loaded, as a plain sequence."""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

from dsctl_core.data.captions import Captions
from dsctl_core.data.defaults import default_image_operator, default_video_operator
from dsctl_core.data.metadata import read_dataset
from dsctl_core.data.operators import SequentialProcess, ToAbsolutePath
from dsctl_core.data.problems import DataError, kind_of_problem
from dsctl_core.data.routing import RouteByType, preview_of
from dsctl_core.data.rows import Metadata, Row
from dsctl_core.data.sizes import fits_of
from dsctl_core.errors import DsctlError, UsageError, unknown_name
from dsctl_core.random import derive_seed

TEXT_COLUMNS = ("prompt",)
ROW_SEED = "_seed"  # in a sample of a training: the seed that its row has, None where it has none


class UnifiedDataset(Sequence[Row]):
    """The rows of a dataset, `repeat` times over; a row is read, checked and loaded when it is asked for.

    The rows are those of `metadata_path`, else of the folder's own metadata.csv, .json, .jsonl or .parquet, else its
    files with captions beside them. `columns` maps names that are wanted to those in the table.

    A row is a dict of the columns in which those named in `data_file_keys` went through an operator: that of
    `special_operator_map` if the column is in it, else `main_data_operator`, by default an image as large as it is.
    `row["prompt"]` is made by `captions`. `row["_row"]` is the number of the row in the metadata, from 0;
    `place(row)` says where that is. `row["_fit"]` says how each picture was cut and scaled.
    """

    def __init__(
        self,
        base_path: str | Path,
        metadata_path: str | Path | None = None,
        repeat: int = 1,
        data_file_keys: str | Iterable[str] = ("image",),
        main_data_operator: Callable[[Any], Any] | None = None,
        special_operator_map: Mapping[str, Callable[[Any], Any]] | None = None,
        *,
        columns: Mapping[str, str] | None = None,
        captions: Captions | None = None,
        allow_outside: bool = False,
    ) -> None:
        if repeat < 1:
            raise UsageError(f"the dataset cannot be repeated {repeat} times", hint="use a repeat of 1 or more")
        self.base_path = _existing_folder(base_path)
        self.repeat, self.allow_outside = repeat, allow_outside
        self.data_file_keys = _column_names(data_file_keys)
        table = None if metadata_path is None else _existing_file(metadata_path, self.base_path)
        self.metadata: Metadata = read_dataset(self.base_path, table, self.data_file_keys, columns)
        self.metadata.require_columns(self.data_file_keys, hint="name the columns of files with --data-file-keys")
        self.numbers: Sequence[int] = range(len(self.metadata.rows))
        self.captions = captions or Captions()
        special = dict(special_operator_map or {})
        for key in special:
            if key not in self.data_file_keys:
                raise unknown_name("column in special_operator_map", key, list(self.data_file_keys))
        main = main_data_operator or self.default_image_operator(self.base_path, allow_outside=allow_outside)
        self.operators = {key: special.get(key, main) for key in self.data_file_keys}

    default_image_operator = staticmethod(default_image_operator)
    default_video_operator = staticmethod(default_video_operator)

    def __len__(self) -> int:
        return len(self.numbers) * self.repeat

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]  # negative numbers, and IndexError at the end
        return self.sample(index, derive_seed("sample", index))

    def sample(self, index: int, seed: int) -> Row:
        """Load the row at `index`; what is random about it depends on `seed` alone."""
        return self.row(self.numbers[index % len(self.numbers)], seed)

    def row(self, number: int, seed: int = 0) -> Row:
        """Load row `number` of the metadata."""
        row = dict(self.metadata.rows[number])
        for key in TEXT_COLUMNS:
            if key in self.metadata.columns:
                with self.placed(number, key):
                    row[key] = self.captions.choose(row.get(key), seed)
        for key, operator in self.operators.items():
            with self.placed(number, key):
                row[key] = operator(row.get(key))
        row["_row"] = number
        row["_fit"] = {key: fit for key in self.operators if (fit := fits_of(row[key])) is not None}
        return row

    def preview(self, number: int, key: str) -> Any:
        """Check the cell `key` of row `number` as loading would, but cheaply; return what its operator's preview does.

        That is the (width, height) it will be loaded with for an image, None for an operator that is a plain function.
        """
        with self.placed(number, key):
            return preview_of(self.operators[key], self.metadata.rows[number].get(key))

    def files(self, number: int, key: str) -> list[Path]:
        """Return the paths that the cell `key` of row `number` names: of one file, or of each in a list."""
        to_path = ToAbsolutePath(self.base_path, self.allow_outside)
        one_or_several = RouteByType(((str, lambda name: [to_path(name)]), (list, SequentialProcess(to_path))))
        with self.placed(number, key):
            return one_or_several(self.metadata.rows[number].get(key))

    def varies(self) -> bool:
        """Return whether a row can give another prompt each time, so that it cannot be encoded once for all."""
        cells = (row.get(key) for row in self.metadata.rows for key in TEXT_COLUMNS)
        return self.captions.dropout > 0 or any(isinstance(cell, list) and len(cell) > 1 for cell in cells)

    def buckets(self) -> list[Hashable]:
        """Return, for each row of one repetition, what rows of one batch must have in common: the sizes of its files.

        Reads the beginning of every file. A row that cannot be used is an error.
        """
        return [tuple(_hashable(self.preview(number, key)) for key in self.data_file_keys) for number in self.numbers]

    def without(self, numbers: Collection[int]) -> UnifiedDataset:
        """Return this dataset less the rows with these numbers in the metadata."""
        kept = copy.copy(self)
        left_out = set(numbers)
        kept.numbers = [number for number in self.numbers if number not in left_out]
        if not kept.numbers:
            raise DataError(
                f"{self.metadata.path} has no row that can be used", hint="see `dsctl dataset validate`", kind="table"
            )
        return kept

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
            problem = f"{self.place(number)}, {shown}: {error.problem}"
            raise DataError(problem, hint=error.hint, kind=kind_of_problem(error)) from error


def _hashable(value: Any) -> Hashable:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


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
