"""Define what `dsctl cache` needs of where it writes: a folder, or an address in an object store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from dsctl_core.cache.manifest import MANIFEST_FILE, Manifest
from dsctl_core.cache.shards import Part
from dsctl_core.errors import DsctlError
from dsctl_core.remote.address import shown
from dsctl_core.remote.errors import RemoteError


class CacheWorker(Protocol):
    """One of the commands that share the work on a cache: dsctl_core.files.leases says how."""

    name: str

    def take(self, name: str) -> bool:
        """Take a lease; return False where another worker holds it."""
        ...

    def release(self, name: str) -> None:
        """Give a lease back."""
        ...

    def note(self, name: str, text: str) -> None:
        """Leave a note for the others."""
        ...

    def notes(self, read: Collection[Hashable] = ()) -> Iterator[tuple[Hashable, str]]:
        """Yield the notes that are not in `read`, each with its version."""
        ...


class CacheOutput(ABC):
    """The cache at `path` as its writers see it. Shards are called by the names of their files.

    `far` is how many times longer than in a folder to wait between two looks at what others have written.
    """

    far = 1.0

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def require_ours(self) -> None:
        """Raise unless there is nothing, or a cache of ours, which may be incomplete or damaged."""

    def require_sharing(self) -> None:  # noqa: B027 - folders can be shared
        """Raise where several commands cannot share the work."""

    def refuse_to_prune(self) -> None:
        """Raise for shards without a valid manifest, which would say what is a cache's."""
        if self.sizes() and not self.is_whole():
            raise DsctlError(
                f"--prune removes nothing from {shown(self.path)}, whose {MANIFEST_FILE} is missing or damaged",
                hint="run the command without --prune first: it writes the manifest anew",
            )

    @abstractmethod
    def prepared(self, *, first: bool) -> AbstractContextManager[None]:
        """Prove that something can be written; what was made for that goes again where the block fails.

        Of several processes the `first` does so.
        """

    @abstractmethod
    def alone(self) -> AbstractContextManager[None]:
        """Keep other commands from writing inside the block; raise where one writes already."""

    @abstractmethod
    def joined(self, group: str, patience: float) -> AbstractContextManager[CacheWorker]:
        """Be one of the workers of `group`; raise where others than these write, still after `patience` seconds."""

    @abstractmethod
    def manifest(self) -> Manifest:
        """Return the manifest; raise if there is none, or no valid one."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Return the bytes of each shard that is there, by name, sorted."""

    @abstractmethod
    def versions(self) -> set[tuple[str, Hashable]]:
        """Return (name, version) of each shard that is there; the version changes when a shard is written again."""

    @abstractmethod
    def examined(self, names: Iterable[str]) -> Iterator[tuple[str, DsctlError | None]]:
        """Yield each shard with what is wrong with it, or None."""

    @abstractmethod
    def keys(self, names: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
        """Yield each shard with the keys of its parts."""

    @abstractmethod
    def tensor_bytes(self, names: Iterable[str]) -> Iterator[tuple[str, dict[str, int]]]:
        """Yield each shard with the bytes of the tensors of its parts, by key; a part can be without."""

    @abstractmethod
    def read(self, name: str, keys: Collection[str]) -> Mapping[str, Part]:
        """Return some parts of a shard, by key."""

    @abstractmethod
    def write(self, parts: Mapping[str, Part]) -> str:
        """Write a shard of `parts`, by key, that is whole or absent; return its name. See `flush`."""

    def flush(self) -> None:  # noqa: B027 - a folder has them at once
        """Wait until all shards that were written are there."""

    @abstractmethod
    def remove(self, names: Collection[str], named: Collection[str]) -> None:
        """Remove shards that prove to be of a cache of ours: by their content, or as its manifest `named` them."""

    @abstractmethod
    def write_skipped(self, text: str) -> None:
        """Write skipped.jsonl, or remove it where there is no text."""

    @abstractmethod
    def write_manifest(self, manifest: str, index: str) -> None:
        """Write index.json, then manifest.json: the shards that they name are there."""

    def is_whole(self) -> bool:
        """Return whether there is a valid manifest."""
        try:
            self.manifest()
        except RemoteError:
            raise
        except DsctlError:
            return False
        return True

    def named(self) -> set[str]:
        """Return the shards that a valid manifest names; none without one."""
        return set(self.manifest().shards) if self.is_whole() else set()
