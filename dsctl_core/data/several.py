"""Several datasets as one: their rows one after another, each read as its own dataset reads it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

from dsctl_core.data.columns import JoinedRows, Row
from dsctl_core.data.dataset import UnifiedDataset
from dsctl_core.data.problems import DataError
from dsctl_core.data.row_numbers import joined
from dsctl_core.data.rows import Metadata
from dsctl_core.data.sampler import Block
from dsctl_core.data.shares import Mixture, blocks_of
from dsctl_core.options.datasets import DatasetTable

DATASET = "_dataset"  # in a row: the number of its table, from 0


class SeveralDatasets(UnifiedDataset):
    """The rows of `parts`, with numbers that go on from one to the next; `tables` say how often an epoch has each.

    A row also has `row["_dataset"]`, the number of its table. A column of files that a part lacks, and that may be
    empty, is None in its rows.

    Args:
        parts: The datasets, each repeated once.
        tables: The table of each.
        repeat: How many times an epoch goes over all of it.
    """

    def __init__(self, parts: Sequence[UnifiedDataset], tables: Sequence[DatasetTable], repeat: int = 1) -> None:
        self._parts, self.tables, self.repeat = tuple(parts), tuple(tables), repeat
        counts = [len(part.metadata.rows) for part in parts]
        self.starts = [0, *accumulate(counts[:-1])]
        self.data_file_keys = tuple(dict.fromkeys(key for part in parts for key in part.data_file_keys))
        self.optional_keys = frozenset().union(*(part.optional_keys for part in parts))
        self.along_keys = {key: still for part in parts for key, still in part.along_keys.items()}
        self.whole_keys = frozenset().union(*(part.whole_keys for part in parts))
        columns = tuple(dict.fromkeys(name for part in parts for name in part.metadata.columns))
        rows = JoinedRows([rows for part in parts if not isinstance(rows := part.metadata.rows, JoinedRows)])
        self.metadata = Metadata(Path("[[dataset]]"), columns, rows, None)
        self.numbers = joined([part.numbers for part in parts], self.starts)
        self.once = False
        self._mixture: Mixture | None = None
        self._require_columns()

    def _require_columns(self) -> None:
        for part, table in zip(self.parts, self.tables, strict=True):
            for key in self.data_file_keys:
                if key not in part.data_file_keys and key not in self.optional_keys:
                    raise DataError(
                        f"[[dataset]] {table.label} has no column {key!r}, and other datasets have one",
                        hint="train on them one by one, or give each that column",
                        kind="column",
                    )

    @property
    def parts(self) -> tuple[UnifiedDataset, ...]:
        """The datasets."""
        return self._parts

    @property
    def mixture(self) -> Mixture:
        """Which row is at which position of an epoch."""
        if self._mixture is None:
            counts = [0] * len(self.parts)
            for number in self.numbers:
                counts[self.table_of(number)] += 1
            once = [Block(count, self.repeat) for count in counts]
            self._mixture = Mixture(once if self.once else blocks_of(counts, self.tables, self.repeat))
        return self._mixture

    def __len__(self) -> int:
        return len(self.mixture)

    def table_of(self, number: int) -> int:
        """Return the number of the table that row `number` belongs to."""
        return bisect_right(self.starts, number) - 1

    def part_of(self, number: int) -> tuple[UnifiedDataset, int]:
        """Return the dataset that row `number` belongs to, and its number there."""
        table = self.table_of(number)
        return self.parts[table], number - self.starts[table]

    def sample(self, index: int, seed: int) -> Row:
        """Load the row at `index`. Its random choices (the prompt) depend on `seed` alone."""
        return self.row(self.numbers[self.mixture.row_at(index)], seed)

    def row(self, number: int, seed: int = 0) -> Row:
        """Load row `number` (from 0, over all datasets)."""
        part, own = self.part_of(number)
        absent = dict.fromkeys(key for key in self.data_file_keys if key not in part.data_file_keys)
        return {**part.row(own, seed), **absent, "_row": number, DATASET: self.table_of(number)}

    def require_companions(self, number: int) -> None:
        """Raise `DataError` if row `number` has a column that belongs to another, and not the other."""
        part, own = self.part_of(number)
        part.require_companions(own)

    def prompts(self, number: int) -> tuple[str, ...]:
        """Return every prompt that row `number` can have, without dropout."""
        part, own = self.part_of(number)
        return part.prompts(own)

    def chosen_texts(self, number: int, seed: int) -> Row:
        """Return the text columns of row `number` as training reads them; random choices depend on `seed` alone."""
        part, own = self.part_of(number)
        return part.chosen_texts(own, seed)

    def require_prompts(self) -> None:
        """Raise `DataError` if a text column is missing."""
        for part in self.parts:
            part.require_prompts()

    def preview(self, number: int, key: str) -> Any:
        """Check the cell `key` of row `number` without decoding its file, and return the preview of its operator."""
        part, own = self.part_of(number)
        return part.preview(own, key) if key in part.data_file_keys else None

    def files(self, number: int, key: str) -> list[Path]:
        """Return the paths in the cell `key` of row `number`."""
        part, own = self.part_of(number)
        return part.files(own, key) if key in part.data_file_keys else []

    def is_empty(self, number: int, key: str) -> bool:
        """Return whether the cell `key` of row `number` is empty, in an optional column."""
        part, own = self.part_of(number)
        return key not in part.data_file_keys or part.is_empty(own, key)

    def origin(self, number: int) -> Hashable:
        """Return a key of the row of the table that row `number` is, or is a clip of."""
        part, own = self.part_of(number)
        return self.table_of(number), part.origin(own)

    @property
    def takes_folders(self) -> bool:
        """Whether a file may be a folder of frames."""
        return any(part.takes_folders for part in self.parts)

    def chosen_frames(self, number: int, path: Path) -> list[str]:
        """Return what chooses the frames of a file of row `number` beside the settings of its dataset."""
        part, own = self.part_of(number)
        return part.chosen_frames(own, path)

    def is_copy(self, number: int, key: str) -> bool:
        """Return whether the cell `key` of row `number` is made from another column."""
        part, own = self.part_of(number)
        return part.is_copy(own, key)

    def notes(self) -> list[str]:
        """Return lines for people, each with the name of its dataset."""
        return [
            f"{table.label}: {note}"
            for part, table in zip(self.parts, self.tables, strict=True)
            for note in part.notes()
        ]

    def varies(self) -> bool:
        """Return whether a row can have different prompts in different epochs, so that it cannot be encoded once."""
        return any(part.varies() for part in self.parts)

    def without(self, numbers: Collection[int]) -> SeveralDatasets:
        """Return these datasets without the rows `numbers` (from 0, over all datasets)."""
        subset = super().without(numbers)
        assert isinstance(subset, SeveralDatasets)
        subset._mixture = None
        return subset

    def each_once(self) -> SeveralDatasets:
        """Return these datasets with each row once, whatever their repeats and weights."""
        subset = super().each_once()
        assert isinstance(subset, SeveralDatasets)
        subset._mixture, subset.once = None, True
        return subset

    def location(self, number: int) -> str:
        """Return the location of row `number` in the metadata of its dataset, for messages."""
        part, own = self.part_of(number)
        return part.location(own)

    @contextmanager
    def cell_errors(self, number: int, key: str) -> Iterator[None]:
        """Add the location and the value of the cell `key` of row `number` to errors of this block."""
        part, own = self.part_of(number)
        with part.cell_errors(own, key):
            yield
