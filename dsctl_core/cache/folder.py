"""Manage a cache folder: lock it for one writer, list its parts, and prune unused ones."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from dsctl_core.cache.shards import FOLDER, Part, examine, examine_all, shard_files, structures, write_shard
from dsctl_core.errors import DsctlError
from dsctl_core.files import lock
from dsctl_core.progress import Progress

LOCK_FILE = ".lock"


def locked(cache: Path) -> AbstractContextManager[None]:
    """Lock the folder against other writers; the operating system releases the lock of a process that is killed."""
    busy = DsctlError(f"another command is writing to {cache}", hint="wait until it is done, or use another folder")
    return lock.locked(cache / LOCK_FILE, busy)


def clear_temporary_files(cache: Path) -> None:
    """Remove incomplete files of a command that was killed. The caller must hold the lock."""
    for path in [*cache.glob(".*.tmp"), *(cache / FOLDER).glob(".*.tmp"), *(cache / FOLDER).glob(".probe.*")]:
        path.unlink(missing_ok=True)


class Parts:
    """The parts in a cache folder, and the shard of each (`paths`). Damaged shards count as missing."""

    def __init__(self, cache: Path, progress: Progress) -> None:
        self.cache = cache
        self.damaged: set[str] = set()
        for path, error in examine_all(shard_files(cache)):
            if error is not None:
                self.damaged.add(path.name)
                progress.note(f"{error.problem}; its entries are encoded again")
        self.paths = self._find()

    def refresh(self) -> None:
        """Read the folder again, after parts were written."""
        self.paths = self._find()

    def _find(self) -> dict[str, Path]:
        paths: dict[str, Path] = {}
        for path in shard_files(self.cache):
            if path.name in self.damaged:
                try:
                    examine(path)  # it may have been written again
                except DsctlError:
                    continue
            for key in structures(path):
                paths.setdefault(key, path)
        return paths

    def prune(self, used: set[str]) -> int:
        """Remove the parts whose keys are not in `used`, and damaged shards; return the number of bytes freed."""
        before = sum(path.stat().st_size for path in shard_files(self.cache))
        used_shards = {path for key, path in self.paths.items() if key in used}
        for path in sorted(used_shards):
            keys = [key for key in structures(path) if key in used and self.paths[key] == path]
            if len(keys) < len(structures(path)):
                write_shard(self.cache, _read_parts(path, keys))
                used_shards.discard(path)
        kept = {path.name for path in used_shards}
        old = {path.name for path in self.paths.values()} | self.damaged
        for path in shard_files(self.cache):
            if path.name in old and path.name not in kept:
                path.unlink()
        self.refresh()
        return before - sum(path.stat().st_size for path in shard_files(self.cache))


def _read_parts(path: Path, keys: list[str]) -> Mapping[str, Part]:
    from safetensors import safe_open

    by_key, parts = structures(path), {}
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        for key in keys:
            tensor_names = sorted(
                (name for name in names if name.startswith(f"{key}/")), key=lambda name: int(name[len(key) + 1 :])
            )
            parts[key] = Part(by_key[key], tuple(file.get_tensor(name).clone() for name in tensor_names))
    return parts
