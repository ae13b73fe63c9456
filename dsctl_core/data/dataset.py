"""UnifiedDataset: a sequence of the rows of a dataset, with their images and videos loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, overload

from dsctl_core.data.captions import Captions
from dsctl_core.data.clip_rows import require_one_clip
from dsctl_core.data.columns import Row
from dsctl_core.data.dataset_arguments import column_names, existing_file, existing_folder
from dsctl_core.data.defaults import default_image_operator, default_video_operator
from dsctl_core.data.facts import Identity
from dsctl_core.data.frame_folder import RATE_COLUMN
from dsctl_core.data.frame_rule import FrameRule
from dsctl_core.data.known_files import KnownFiles
from dsctl_core.data.masks import MASK, require_fitting, require_same_crop
from dsctl_core.data.metadata import read_dataset
from dsctl_core.data.operators import PLAIN, SequentialProcess, ToAbsolutePath
from dsctl_core.data.problems import DataError
from dsctl_core.data.routing import RouteByType, preview_of
from dsctl_core.data.row_numbers import RowNumbers
from dsctl_core.data.row_texts import TEXT_COLUMNS, RowTexts
from dsctl_core.data.rows import Metadata, is_empty_cell, with_caption, with_clips, with_copies
from dsctl_core.data.sampler import Block
from dsctl_core.data.shares import Mixture
from dsctl_core.data.sizes import fits_of
from dsctl_core.data.stacks import Size, files_of_cell, find_odd_size
from dsctl_core.data.video import count_clips
from dsctl_core.errors import DsctlError, UsageError, unknown_name
from dsctl_core.options.datasets import DatasetTable
from dsctl_core.random import derive_seed
from dsctl_core.readable import counted
from dsctl_core.remote import anywhere

SINGLE_COLUMNS = ("image", "video")  # what is trained on is one file; references may be a list of them
ROW_SEED = "_seed"  # in a sample of a training: the seed that its row has, None where it has none


class UnifiedDataset(RowTexts, Sequence[Row]):
    """The rows of a dataset, repeated `repeat` times. A row is loaded when it is indexed.

    The rows come from `metadata_path`, or else from metadata.csv, .json, .jsonl or .parquet in the folder, or else
    from the files of the folder that have a caption in a .txt file of the same name, or else from a pair of folders.

    A row is a dict from column name to value. `row["prompt"]` is made by `captions`. Three keys are not in the table
    as such: a column of `data_file_keys` has the result of its operator, `row["_row"]` is the number of the row in
    the metadata (from 0; see `location`), and `row["_fit"]` has the crop and the scale of each image (`Fit`).

    Args:
        base_path: The dataset folder; file names in the table are relative to it.
        metadata_path: The table, if it is not the metadata file of the folder.
        repeat: The number of repetitions, 1 or more.
        data_file_keys: The columns that hold file names.
        main_data_operator: Turns a cell of such a column into its value. By default it loads an image at its own size.
        special_operator_map: Operators of single columns, used instead of `main_data_operator`.
        columns: Renames columns: from the name that training uses to the name in the table.
        captions: The settings that turn captions into prompts.
        allow_outside: Whether file names may lead out of `base_path`.
        optional_keys: The columns of file names whose cells may be empty; the value of such a cell is None.
        single_keys: The columns of file names that hold one file in each row, not a list of them.
        list_keys: The columns of file names that hold several files in each row: a list, or the name of a folder.
        aligned_keys: The columns of pictures that lie on each other, so that those of a row have one size.
        along_keys: The columns of pictures or clips, beside masks, that have the size and the frames of the target,
            the first of `data_file_keys`; each with whether a single picture is that of all frames.
        whole_keys: The columns of pictures that keep their own size.
        companions: Columns that belong to another: a row that has one has the other too.
        copies: Columns that are made from others: {new column: the one whose cells it has}.
        caption: The caption of every row, in place of its own.
        clip_operator: Returns the operator for a row, in place of `main_data_operator`: it is called with `clip`, which
            clip of its video the row is, and `frame_rate`, the cell of the row in the column "fps".
        every_clip: The rule by which each video of the first column of `data_file_keys` gives several clips, each of
            which is a row; its "extraction" is "every".
        frame_keys: The columns of pictures that are a frame of a clip, which a video of several clips cannot have.
        known: What is known of the files; the operators must have it, too, to make use of it.
    """

    tables: tuple[DatasetTable, ...] = ()  # of several datasets
    known: KnownFiles | None = None
    reading: str | None = None  # identifies all that the outcome of a check depends on, besides rows and files
    identity: Identity | None = None  # once it was asked for; see `identity_of_dataset`

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
        optional_keys: Iterable[str] = (),
        single_keys: Iterable[str] = (),
        list_keys: Iterable[str] = (),
        aligned_keys: Iterable[str] = (),
        along_keys: Mapping[str, bool] | None = None,
        whole_keys: Iterable[str] = (),
        companions: Mapping[str, str] | None = None,
        copies: Mapping[str, str] | None = None,
        caption: str | None = None,
        clip_operator: Callable[..., Callable[[Any], Any]] | None = None,
        every_clip: FrameRule | None = None,
        frame_keys: Iterable[str] = (),
        known: KnownFiles | None = None,
    ) -> None:
        if repeat < 1:
            raise UsageError(f"the dataset cannot be repeated {repeat} times", hint="use a repeat of 1 or more")
        self.base_path = existing_folder(base_path)
        self.repeat, self.allow_outside, self.known = repeat, allow_outside, known
        self._to_path = ToAbsolutePath(self.base_path, allow_outside)
        self.data_file_keys = column_names(data_file_keys)
        table = None if metadata_path is None else existing_file(metadata_path, self.base_path)
        self.copies = dict(copies or {})
        in_table = [key for key in self.data_file_keys if key not in self.copies]
        found = read_dataset(self.base_path, table, in_table, columns, uncaptioned=caption is not None)
        self.metadata: Metadata = with_caption(with_copies(found, self.copies), caption)
        self.metadata.require_columns(self.data_file_keys, hint="name the columns of files with --data-file-keys")
        self.optional_keys, self.single_keys = frozenset(optional_keys), frozenset(single_keys)
        self.list_keys, self.aligned_keys = frozenset(list_keys), frozenset(aligned_keys)
        self.companions = dict(companions or {})
        self.along_keys, self.whole_keys = {MASK: True, **(along_keys or {})}, frozenset(whole_keys)
        self.clip_operator, self.frame_keys = clip_operator, frozenset(frame_keys)
        if every_clip is not None:
            self._look_at_videos()
            counts = [self._clips_in(number, every_clip) for number in range(len(self.metadata.rows))]
            self.metadata = with_clips(self.metadata, counts)
        self.numbers = RowNumbers(range(len(self.metadata.rows)), self.metadata.repeats)
        self.captions = captions or Captions()
        special = dict(special_operator_map or {})
        for key in special:
            if key not in self.data_file_keys:
                raise unknown_name("column in special_operator_map", key, list(self.data_file_keys))
        main = main_data_operator or self.default_image_operator(self.base_path, allow_outside=allow_outside)
        self.special_keys = frozenset(special)
        self.operators = {key: special.get(key, main) for key in self.data_file_keys}

    default_image_operator = staticmethod(default_image_operator)
    default_video_operator = staticmethod(default_video_operator)

    def __len__(self) -> int:
        return len(self.numbers) * self.repeat

    @property
    def parts(self) -> tuple[UnifiedDataset, ...]:
        """The datasets that this one consists of: itself, or several."""
        return (self,)

    @property
    def mixture(self) -> Mixture:
        """Which row is at which position of an epoch."""
        return Mixture([Block(len(self.numbers), self.repeat)])

    def table_of(self, number: int) -> int:
        """Return the number of the table, of several datasets, that row `number` belongs to; 0 for one dataset."""
        return 0

    @property
    def rows_in_use(self) -> RowNumbers:
        """The numbers of the rows (from 0), each once; `numbers` has a row as often as an epoch does."""
        return self.numbers.once()

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
        """Load the row at `index`. Its random choices (the prompt) depend on `seed` alone."""
        return self.row(self.numbers[index % len(self.numbers)], seed)

    def row(self, number: int, seed: int = 0) -> Row:
        """Load row `number` (from 0) of the metadata; raise `DataError` with its location where that fails."""
        row = dict(self.metadata.rows[number])
        if all(key in self.metadata.columns for key in TEXT_COLUMNS):
            row |= self.chosen_texts(number, seed)
        for key in self.operators:
            with self.cell_errors(number, key):
                self._require_one_clip(number, key)
                empty = self.is_empty(number, key)
                row[key] = None if empty else self._operator(number, key)(self._file_cell(number, key))
        row["_row"] = number
        row["_fit"] = {key: fit for key in self.operators if (fit := fits_of(row[key])) is not None}
        fits = {key: fit if isinstance(fit, list) else [fit] for key, fit in row["_fit"].items()}
        self.require_aligned(number, {key: [fit.original for fit in each if fit] for key, each in fits.items()})
        for key in self.operators.keys() & self.along_keys.keys():
            with self.cell_errors(number, key):
                require_same_crop(row["_fit"], self.data_file_keys[0], key)
        return row

    def require_aligned(self, number: int, sizes: Mapping[str, Sequence[Size]]) -> None:
        """Raise `DataError` if pictures of row `number` that lie on each other have several sizes.

        `sizes` are the (width, height) of the files in each column.
        """
        odd = find_odd_size({key: own for key, own in sizes.items() if key in self.aligned_keys})
        if odd is not None:
            with self.cell_errors(number, odd[0]):
                raise odd[1]

    def require_companions(self, number: int) -> None:
        """Raise `DataError` if row `number` has a column that belongs to another, and not the other."""
        for key in self.data_file_keys:
            other = self.companions.get(key)
            if other is None or self.is_empty(number, key):
                continue
            if other not in self.data_file_keys or self.is_empty(number, other):
                with self.cell_errors(number, key):
                    hint = f"give the {other} that it is for, or leave it out"
                    raise DataError(f"{key} is given without {other}", hint=hint, kind="missing file")

    def preview(self, number: int, key: str) -> Any:
        """Check the cell `key` of row `number` without decoding its file, and return the preview of its operator.

        The preview of an image is the (width, height) with which it will be loaded; an operator that is a plain
        function has none (None), and so does an empty cell of an optional column.
        """
        try:
            self._require_one_clip(number, key)
            if self.is_empty(number, key):
                return None
            found = preview_of(self._operator(number, key), self._file_cell(number, key))
            if key in self.along_keys and found is not None:
                target = self.preview(number, self.data_file_keys[0])
                require_fitting(target, found, key, still=self.along_keys[key])
            return found
        except DsctlError as error:
            raise self._located(number, key, error) from error

    def files(self, number: int, key: str) -> list[Path]:
        """Return the paths in the cell `key` of row `number`: one for a name, several for a list, none if empty."""
        return [Path(path) for path in self.paths(number, key)]

    def paths(self, number: int, key: str) -> list[str]:
        """Return the same as text."""
        cell = self.metadata.rows.cell(number, key)
        if type(cell) is str and key not in self.list_keys and PLAIN.fullmatch(cell):
            return [self._to_path.text(cell)]
        to_path = self._to_path.text
        to_paths = RouteByType(((str, lambda name: [to_path(name)]), (list, SequentialProcess(to_path))))
        with self.cell_errors(number, key):
            return [] if self.is_empty(number, key) else to_paths(self._file_cell(number, key))

    def plain_paths(self, first: int, last: int, key: str) -> list[str] | None:
        """Return the same for the rows from `first` to before `last`, at once; None unless each has one plain name."""
        cells = None if key in self.list_keys else self.metadata.rows.texts(key, first, last)
        return None if cells is None else self._to_path.texts(cells)

    def is_empty(self, number: int, key: str) -> bool:
        """Return whether the cell `key` of row `number` is empty, in an optional column."""
        if key not in self.optional_keys:
            return False
        return is_empty_cell(self.metadata.rows.cell(number, key))

    def is_copy(self, number: int, key: str) -> bool:
        """Return whether the cell `key` of row `number` is made from another column."""
        return key in self.copies

    def origin(self, number: int) -> Hashable:
        """Return a key of the row of the table that row `number` is, or is a clip of."""
        return self.metadata.row_of(number)

    @property
    def takes_folders(self) -> bool:
        """Whether a file may be a folder of frames."""
        return self.clip_operator is not None

    def chosen_frames(self, number: int, path: Path) -> list[str]:
        """Return what chooses the frames of a file of row `number` beside the settings of its dataset.

        That is its clip, and of a folder the frame rate.
        """
        clip, rate = self.metadata.clip_of(number), self.metadata.rows.cell(number, RATE_COLUMN)
        rated = rate is not None and anywhere.is_dir(path)
        return [*([f"clip {clip}"] if clip else []), *([f"{RATE_COLUMN} {rate}"] if rated else [])]

    def _operator(self, number: int, key: str) -> Callable[[Any], Any]:
        """Return the operator for the cell `key` of row `number`."""
        clip, rate = self.metadata.clip_of(number), self.metadata.rows.cell(number, RATE_COLUMN)
        if self.clip_operator is None or key in self.special_keys or (clip == 0 and rate is None):
            return self.operators[key]
        return self.clip_operator(clip=clip, frame_rate=rate)

    def _look_at_videos(self) -> None:
        """Find out about the files of the target alone, as the number of rows depends on them."""
        if self.known is not None:
            self.known.read(self._paths_of_targets(), len(self.metadata.rows))
            self.known.done = 0  # the other columns are not read

    def _paths_of_targets(self) -> Iterator[str]:
        for number in range(len(self.metadata.rows)):
            with suppress(DsctlError):  # found where the row is checked
                yield from self.paths(number, self.data_file_keys[0])

    def _clips_in(self, number: int, rule: FrameRule) -> int:
        """Return how many clips the video of row `number` gives; 1 where it cannot be read, which loading explains."""
        try:
            paths = self.files(number, self.data_file_keys[0])
            rate = self.metadata.rows.cell(number, RATE_COLUMN)
            return sum(count_clips(path, rule, rate, self.known) for path in paths) or 1
        except DataError:
            return 1

    def _require_one_clip(self, number: int, key: str) -> None:
        clips = self.metadata.clips
        if clips is not None and key in self.frame_keys and not self.is_empty(number, key):
            require_one_clip(key, clips.counts[clips.row_of(number)])

    def _file_cell(self, number: int, key: str) -> Any:
        """Return the cell `key` of row `number`, in a column of several files as a list.

        Raises `DataError` for a list in a column of single files.
        """
        cell = self.metadata.rows.cell(number, key)
        if key in self.list_keys:
            return files_of_cell(cell, ToAbsolutePath(self.base_path, self.allow_outside))
        if isinstance(cell, list | tuple) and key in self.single_keys:
            raise DataError(
                f"the value is a list of {len(cell)}, but a row has one {key}",
                hint='write it as "a.png"; only references, such as edit_image, can be lists',
                kind="list",
            )
        return cell

    def notes(self) -> list[str]:
        """Return lines for people: the layout, what was left out, and how many rows have an empty optional column."""
        clips = self.metadata.clips
        numbers = [] if clips is None else [f"{counted(len(clips), 'clip')} of {counted(len(clips.counts), 'video')}"]
        empty = (line for key in self.data_file_keys if (line := self._empty_cells(key)))
        return [*self.metadata.notes(), *numbers, *empty]

    def _empty_cells(self, key: str) -> str | None:
        if key not in self.optional_keys:
            return None
        rows = self.rows_in_use
        count = sum(self.is_empty(number, key) for number in rows)
        of = counted(len(rows), "row")
        how = f"has no {key}, and is" if count == 1 else f"have no {key}, and are"
        return f"{count} of {of} {how} trained on without one" if count else None

    def buckets(self) -> list[Hashable]:
        """Return the bucket of each row of one repetition: the sizes of its files. A batch has rows of one bucket.

        Masks have the size of what they belong to, and of pictures that keep their own size the number counts. Reads
        the beginning of every file; raises `DataError` for a row that cannot be used.
        """
        keys = [key for key in self.data_file_keys if key != MASK]
        found = {number: tuple(self._size_in_batch(number, key) for key in keys) for number in self.rows_in_use}
        return [found[number] for number in self.numbers]

    def _size_in_batch(self, number: int, key: str) -> Hashable:
        """Return in what the cells `key` of rows of one batch must agree."""
        preview = self.preview(number, key)
        return len(preview or ()) if key in self.whole_keys else _hashable(preview)

    def without(self, numbers: Collection[int]) -> UnifiedDataset:
        """Return this dataset without the rows `numbers` of the metadata (from 0)."""
        subset = copy.copy(self)
        excluded = set(numbers)
        subset.numbers = self.numbers.without(excluded)
        if not len(subset.numbers):
            raise DataError(
                f"{self.metadata.path} has no row that can be used",
                hint="list the problems with `dsctl dataset validate`",
                kind="table",
            )
        return subset

    def each_once(self) -> UnifiedDataset:
        """Return this dataset with each row once, also those that an epoch has several times."""
        subset = copy.copy(self)
        subset.numbers = self.rows_in_use
        return subset


def _hashable(value: Any) -> Hashable:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value
