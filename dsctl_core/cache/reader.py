"""CachedDataset: the entries of a cache as the rows of a dataset, memory-mapped, in any order."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Hashable, Sequence
from pathlib import Path
from typing import Any

from dsctl_core.cache.codec import decode, tensors_of
from dsctl_core.cache.manifest import Entry, read_index, read_manifest
from dsctl_core.cache.shards import FOLDER, examine_all, structures
from dsctl_core.errors import DsctlError

CACHED = "_cached"  # where a row from a cache has its sample
MOST_OPEN = 256  # shards that are mapped at a time


class CachedDataset(Sequence[dict[str, Any]]):
    """The entries of the cache in `folder`, `repeat` times over.

    A row is {"_row": its number in the table it came from, "_cached": its sample}. Opening reads manifest and index;
    `check_shards` also reads every byte, and should be called before the first row is trusted.
    """

    def __init__(self, folder: str | Path, repeat: int = 1) -> None:
        self.folder, self.repeat = Path(folder), repeat
        self.manifest = read_manifest(self.folder)
        self.entries, self.places = read_index(self.folder, self.manifest)
        if not self.entries:
            raise DsctlError(
                f"the cache in {self.folder} has no entries", hint="make it again from a dataset with rows"
            )
        self._open: OrderedDict[str, tuple[Any, dict[str, Any]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.entries) * self.repeat

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        entry = self.entries[range(len(self))[index] % len(self.entries)]
        return {"_row": entry.row, CACHED: self.sample(entry)}

    def __getstate__(self) -> dict[str, Any]:
        """Hand no open files to a worker process."""
        return {**self.__dict__, "_open": OrderedDict()}

    def sample(self, entry: Entry) -> dict[str, Any]:
        """Return the values of an entry."""
        values = {name: decode(structure, None) for name, structure in entry.values.items()}
        for key in entry.parts:
            opened, found = self._shard(self.places[key])
            for name, structure in found[key].items():
                values[name] = decode(structure, lambda n, key=key, opened=opened: opened.get_tensor(f"{key}/{n}"))
        return values

    def without(self, rows: Collection[int]) -> CachedDataset:
        """Return this dataset less the entries of these rows of the table that it came from."""
        kept = copy.copy(self)
        kept.entries = [entry for entry in self.entries if entry.row not in rows]
        return kept

    def buckets(self, padded: Collection[str]) -> list[Hashable]:
        """Return, for each entry, what entries of one batch must have in common.

        That is every plain value, and the shape of every tensor that is not in `padded`.
        """
        return [self._bucket(entry, padded) for entry in self.entries]

    def _bucket(self, entry: Entry, padded: Collection[str]) -> Hashable:
        values = [(name, repr(value)) for name, value in entry.values.items() if not isinstance(value, dict)]
        for key in entry.parts:
            opened, found = self._shard(self.places[key])
            for name, structure in found[key].items():
                if name.partition(".")[2] not in padded:
                    shapes = [opened.get_slice(f"{key}/{number}").get_shape() for number in tensors_of(structure)]
                    # A list has one entry for each sample, so those need not agree; any other plain value is for all.
                    listed = isinstance(structure, dict) and "list" in structure
                    values.append((name, repr(shapes if shapes or listed else structure)))
        return tuple(sorted(values))

    def place(self, row: int) -> str:
        """Say where a row came from, for an error message."""
        return f"{self.folder} row {row + 1}"

    def shards(self) -> list[Path]:
        """Return the files that hold the entries."""
        return [self.folder / FOLDER / name for name in sorted(self.manifest.shards)]

    def check_shards(self) -> None:
        """Raise the first thing that is wrong with any shard."""
        for _, error in examine_all(self.shards()):
            if error is not None:
                raise error

    def _shard(self, name: str) -> tuple[Any, dict[str, Any]]:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        from safetensors import safe_open

        path = self.folder / FOLDER / name
        if len(self._open) >= MOST_OPEN:
            self._open.popitem(last=False)
        self._open[name] = (safe_open(path, framework="pt"), structures(path))
        return self._open[name]
