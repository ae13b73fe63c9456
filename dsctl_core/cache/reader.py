"""CachedDataset: a dataset of the entries of a cache, memory-mapped, with random access."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any

from dsctl_core.cache.codec import decode, tensors_of
from dsctl_core.cache.manifest import OF_CLIPS, OF_TABLES, REBUILD, Entry, read_index, read_manifest
from dsctl_core.cache.remote_shards import RemoteShards
from dsctl_core.cache.shard_reader import OpenShards
from dsctl_core.cache.shards import FOLDER, SUFFIX, shard_files, structures
from dsctl_core.cache.verified import VerifiedShards
from dsctl_core.data.clip_rows import ClipIndex
from dsctl_core.data.sampler import Block
from dsctl_core.data.several import DATASET
from dsctl_core.data.shares import Mixture, blocks_of
from dsctl_core.errors import DsctlError
from dsctl_core.options.datasets import DatasetTable
from dsctl_core.remote.address import is_remote, shown

CACHED = "_cached"  # key of the sample in a row from a cache
WHOLE = 2**31  # bytes of a cache that is verified whole at the start: it takes a second or two


class CachedDataset(Sequence[dict[str, Any]]):
    """The entries of the cache in `folder`, repeated `repeat` times.

    A row is `{"_row": number of the row in the original dataset, "_cached": sample}`, of several datasets also with the
    number of its table. Opening reads manifest and index only. A shard is verified when a row is first read from it;
    `check_shards` does that for all. A folder at a remote address is read by way of local copies of its shards; see
    dsctl_core.cache.remote_shards. Raises `DsctlError` for a cache that is damaged or has no entries.
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
        self.verified = VerifiedShards(self.folder / FOLDER)
        self._remote = RemoteShards(self.folder / FOLDER, self.manifest.shards) if is_remote(self.folder) else None
        self._shards = self._remote or OpenShards(self.folder / FOLDER)

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

    def sample(self, entry: Entry) -> dict[str, Any]:
        """Return the values of an entry by name."""
        with self._structure_of(entry):
            values = {name: decode(structure, None) for name, structure in entry.values.items()}
            for key in entry.parts:
                if self._remote is None:  # a copy is verified when it is whole
                    self.verified.require(self.shard_names[key])
                shard = self._shards[self.shard_names[key]]
                for name, structure in shard.structure(key).items():
                    values[name] = decode(structure, lambda n, key=key, shard=shard: shard.tensor(f"{key}/{n}"))
        return values

    def shape(self, entry: Entry, name: str) -> list[int]:
        """Return the shape of the tensor `name` of an entry, from the header of its shard; [] if it has none."""
        for key in entry.parts:
            shard = self._shards.head(self.shard_names[key])
            for number in tensors_of(shard.structure(key).get(name)):
                return list(shard.entry(f"{key}/{number}")["shape"])
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

    def reopened(self) -> CachedDataset:
        """Return this dataset with open files of its own, for a thread that reads beside others."""
        other = copy.copy(self)
        other.verified = copy.copy(self.verified)
        other._remote = None if self._remote is None else self._remote.reopened()
        other._shards = other._remote or copy.copy(self._shards)
        return other

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
        self.read_heads()
        for entry in {each.key: each for each in self.entries}.values():
            with self._structure_of(entry):
                found[entry.key] = self._bucket(entry, padded)
        return [found[entry.key] for entry in self.entries]

    def read_heads(self) -> None:
        """Read the headers of all shards, where they have to be fetched, several at a time."""
        if self._remote is not None:
            self._remote.read_heads(self.shard_names[key] for entry in self.entries for key in entry.parts)

    def lengths(self, padded: Collection[str]) -> list[tuple[int, ...]]:
        """Return the lengths of the tensors in `padded` (1, T, ...) of each entry, in the order of their names."""
        found: dict[str, tuple[int, ...]] = {}
        for entry in self.entries:
            if entry.key not in found:
                with self._structure_of(entry):
                    heads = [self._shards.head(self.shard_names[key]).structure(key) for key in entry.parts]
                    names = sorted(n for head in heads for n in head if n.partition(".")[2] in padded)
                    shapes = [self.shape(entry, name) for name in names]
                    found[entry.key] = tuple(shape[1] for shape in shapes if len(shape) > 1)
        return [found[entry.key] for entry in self.entries]

    def _bucket(self, entry: Entry, padded: Collection[str]) -> Hashable:
        values = [(name, repr(value)) for name, value in entry.values.items() if not isinstance(value, dict)]
        for key in entry.parts:
            shard = self._shards.head(self.shard_names[key])
            for name, structure in shard.structure(key).items():
                if name.partition(".")[2] not in padded:
                    shapes = [shard.entry(f"{key}/{number}")["shape"] for number in tensors_of(structure)]
                    # A list has one entry per sample, so these may differ; other plain values apply to the whole batch.
                    is_list = isinstance(structure, dict) and "list" in structure
                    values.append((name, repr(shapes if shapes or is_list else structure)))
        return tuple(sorted(values))

    def location(self, row: int) -> str:
        """Return the location of row `row` (from 0) of the original dataset, for messages."""
        return f"{shown(self.folder)} row {row + 1}"

    def fetch_ahead(self, positions: Iterable[int]) -> None:
        """Begin to fetch what the samples at `positions` are made of, where it has to be fetched."""
        if self._remote is not None:
            entries = (self.entries[self.mixture.row_at(position)] for position in positions)
            self._remote.fetch_ahead((self.shard_names[key], key) for entry in entries for key in entry.parts)

    def pending(self) -> int:
        """Return how many shards samples were read from that are not whole yet, and so not verified."""
        return 0 if self._remote is None else self._remote.pending()

    def finish(self) -> None:
        """Wait until these are there, and raise the DsctlError of one that is damaged or cannot be fetched."""
        if self._remote is not None:
            self._remote.finish()

    def shards(self) -> list[Path]:
        """Return the paths of the shards, sorted by name."""
        return [self.folder / FOLDER / name for name in sorted(self.manifest.shards)]

    def verify_shards(self) -> Iterator[tuple[Path, DsctlError | None]]:
        """Read every byte of all shards, and yield the path of each, with the error of a bad one."""
        if self._remote is None:
            yield from self.verified.all_of(self.shards(), anew=True)
        else:
            yield from ((self.folder / FOLDER / name, error) for name, error in self._remote.verified())

    def structures_in(self, shard: Path) -> dict[str, dict[str, Any]]:
        """Return the structures in the header of a shard, by key of the part and name of the value."""
        with nullcontext(shard) if self._remote is None else self._remote.copy(shard.name) as path:
            return structures(path)

    def left_over(self) -> list[Path]:
        """Return the shards that are there and that no entry uses."""
        names = (path.name for path in shard_files(self.folder)) if self._remote is None else self._remote.listed()
        unused = sorted(name for name in names if name.endswith(SUFFIX) and name not in self.manifest.shards)
        return [self.folder / FOLDER / name for name in unused]

    def check_shards(self, *, anew: bool = True) -> None:
        """Verify all shards, without `anew` only those of which it is not remembered, and raise the first error.

        Those of a remote cache are verified as they are fetched; here only that all are there and complete.
        """
        if self._remote is not None:
            self._remote.refuse_incomplete()
            return
        for _, error in self.verified.all_of(self.shards(), anew=anew):
            if error is not None:
                raise error

    def check_at_start(self) -> None:
        """Verify all shards of a cache of up to `WHOLE` bytes; of a larger one, that all are there and complete."""
        if self._remote is not None or self.manifest.bytes.get("shards", 0) <= WHOLE:
            self.check_shards(anew=False)
            return
        for path in self.shards():
            size = path.stat().st_size if path.is_file() else None
            if size != self.manifest.shards[path.name]:
                found = "is missing" if size is None else f"has {size} bytes, not {self.manifest.shards[path.name]}"
                raise DsctlError(f"{path} {found}", hint="copy it again, or run the same `dsctl cache` command again")
