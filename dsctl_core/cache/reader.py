"""CachedDataset: a dataset of the entries of a cache, memory-mapped, with random access."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

from dsctl_core.cache.codec import decode, tensors_of
from dsctl_core.cache.manifest import OF_CLIPS, OF_TABLES, REBUILD, Entry, read_index, read_manifest
from dsctl_core.cache.shards import FOLDER, examine_all, structures
from dsctl_core.data.clip_rows import ClipIndex
from dsctl_core.data.sampler import Block
from dsctl_core.data.several import DATASET
from dsctl_core.data.shares import Mixture, blocks_of
from dsctl_core.errors import DsctlError
from dsctl_core.options.datasets import DatasetTable

CACHED = "_cached"  # key of the sample in a row from a cache
MAX_OPEN_SHARDS = 256  # shards that are mapped at the same time


class CachedDataset(Sequence[dict[str, Any]]):
    """The entries of the cache in `folder`, repeated `repeat` times.

    A row is `{"_row": number of the row in the original dataset, "_cached": sample}`, of several datasets also with the
    number of its table. Opening reads manifest and index only. Call `check_shards` before the first row: it verifies
    every byte. Raises `DsctlError` for a cache that is damaged or has no entries.
    """

    def __init__(self, folder: str | Path, repeat: int = 1) -> None:
        self.folder, self.repeat = Path(folder), repeat
        self.manifest = read_manifest(self.folder)
        self.entries, self.shard_names = read_index(self.folder, self.manifest)
        if not self.entries:
            raise DsctlError(f"the cache in {self.folder} has no entries", hint="rebuild it from a dataset with rows")
        of_tables = self.manifest.recipe.dataset.get(OF_TABLES, [])
        self.tables = tuple(DatasetTable.parse(each["table"]) for each in of_tables)
        self.starts = [0, *accumulate(each["rows"] for each in of_tables[:-1])]
        self.once = False
        self._mixture: Mixture | None = None
        self._open: OrderedDict[str, tuple[Any, dict[str, Any]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.mixture)

    @property
    def mixture(self) -> Mixture:
        """Which entry is at which position of an epoch."""
        if self._mixture is None:
            counts = [0] * len(self.starts)
            for entry in self.entries:
                counts[self.table_of(entry.row)] += 1
            several = self.tables and not self.once
            plain = [Block(count, self.repeat) for count in counts]
            self._mixture = Mixture(blocks_of(counts, self.tables, self.repeat) if several else plain)
        return self._mixture

    def table_of(self, row: int) -> int:
        """Return the number of the table, of several datasets, of a row of the original dataset; else 0."""
        return bisect_right(self.starts, row) - 1

    def origin(self, row: int) -> Hashable:
        """Return a key of the row of the table that a row of the original dataset is, or is a clip of."""
        table = self.table_of(row)
        recipe = self.manifest.recipe.dataset
        counts = (recipe[OF_TABLES][table] if self.tables else recipe).get(OF_CLIPS)
        own = row - self.starts[table]
        return table, own if counts is None else ClipIndex(counts).row_of(own)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        entry = self.entries[self.mixture.row_at(range(len(self))[index])]
        of_table = {DATASET: self.table_of(entry.row)} if self.tables else {}
        return {"_row": entry.row, **of_table, CACHED: self.sample(entry)}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out open files, which cannot be sent to a worker process."""
        return {**self.__dict__, "_open": OrderedDict()}

    def sample(self, entry: Entry) -> dict[str, Any]:
        """Return the values of an entry by name."""
        with self._structure_of(entry):
            values = {name: decode(structure, None) for name, structure in entry.values.items()}
            for key in entry.parts:
                file, parts = self._shard(self.shard_names[key])
                for name, structure in parts[key].items():
                    values[name] = decode(structure, lambda n, key=key, file=file: file.get_tensor(f"{key}/{n}"))
        return values

    def shape(self, entry: Entry, name: str) -> list[int]:
        """Return the shape of the tensor `name` of an entry, from the header of its shard; [] if it has none."""
        for key in entry.parts:
            file, parts = self._shard(self.shard_names[key])
            for number in tensors_of(parts[key].get(name)):
                return list(file.get_slice(f"{key}/{number}").get_shape())
        return []

    @contextmanager
    def _structure_of(self, entry: Entry) -> Iterator[None]:
        """Turn what a structure runs into that `encode` does not write into a DsctlError that names the row."""
        from safetensors import SafetensorError

        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
            raise DsctlError(
                f"{self.location(entry.row)} is not an entry that dsctl has written: {type(error).__name__}: {error}",
                hint=REBUILD,
            ) from error

    def without(self, rows: Collection[int]) -> CachedDataset:
        """Return this dataset without the entries of the rows `rows` (from 0) of the original dataset."""
        subset = copy.copy(self)
        subset.entries = [entry for entry in self.entries if entry.row not in rows]
        subset._mixture = None
        return subset

    def each_once(self) -> CachedDataset:
        """Return this dataset with one entry for each row, also for a row that an epoch has several times."""
        subset = copy.copy(self)
        subset.entries = list({entry.row: entry for entry in self.entries}.values())
        subset._mixture, subset.once = None, True
        return subset

    def buckets(self, padded: Collection[str]) -> list[Hashable]:
        """Return the bucket of each entry: its plain values and the shapes of its tensors, except those in `padded`.

        A batch has entries of one bucket. Tensors in `padded` can be padded to the same shape.
        """
        found: dict[str, Hashable] = {}
        for entry in {each.key: each for each in self.entries}.values():
            with self._structure_of(entry):
                found[entry.key] = self._bucket(entry, padded)
        return [found[entry.key] for entry in self.entries]

    def _bucket(self, entry: Entry, padded: Collection[str]) -> Hashable:
        values = [(name, repr(value)) for name, value in entry.values.items() if not isinstance(value, dict)]
        for key in entry.parts:
            file, parts = self._shard(self.shard_names[key])
            for name, structure in parts[key].items():
                if name.partition(".")[2] not in padded:
                    shapes = [file.get_slice(f"{key}/{number}").get_shape() for number in tensors_of(structure)]
                    # A list has one entry per sample, so these may differ; other plain values apply to the whole batch.
                    is_list = isinstance(structure, dict) and "list" in structure
                    values.append((name, repr(shapes if shapes or is_list else structure)))
        return tuple(sorted(values))

    def location(self, row: int) -> str:
        """Return the location of row `row` (from 0) of the original dataset, for messages."""
        return f"{self.folder} row {row + 1}"

    def shards(self) -> list[Path]:
        """Return the paths of the shards, sorted by name."""
        return [self.folder / FOLDER / name for name in sorted(self.manifest.shards)]

    def check_shards(self) -> None:
        """Verify all shards and raise the first error."""
        for _, error in examine_all(self.shards()):
            if error is not None:
                raise error

    def _shard(self, name: str) -> tuple[Any, dict[str, Any]]:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        from safetensors import safe_open

        path = self.folder / FOLDER / name
        if len(self._open) >= MAX_OPEN_SHARDS:
            self._open.popitem(last=False)
        self._open[name] = (safe_open(path, framework="pt"), structures(path))
        return self._open[name]
