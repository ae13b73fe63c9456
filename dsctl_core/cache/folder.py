"""A cache folder as a whole: one writer at a time, which parts are there, and what is there for nothing."""

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
    """Keep other commands from writing to the folder."""
    busy = DsctlError(f"another command is writing to {cache}", hint="wait until it is done, or give another folder")
    return lock.locked(cache / LOCK_FILE, busy)


def clear_temporary_files(cache: Path) -> None:
    """Remove what a command that was killed left half written; only one that holds the lock may do so."""
    for path in [*cache.glob(".*.tmp"), *(cache / FOLDER).glob(".*.tmp"), *(cache / FOLDER).glob(".probe.*")]:
        path.unlink(missing_ok=True)


class Parts:
    """The parts in a cache folder. What is damaged is as good as not there: it is made again."""

    def __init__(self, cache: Path, progress: Progress) -> None:
        self.cache = cache
        self.damaged: set[str] = set()
        for path, error in examine_all(shard_files(cache)):
            if error is not None:
                self.damaged.add(path.name)
                progress.note(f"{error.problem}; what it held is encoded again")
        self.places = self._find()

    def refresh(self) -> None:
        """Look again, after parts were written."""
        self.places = self._find()

    def _find(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in shard_files(self.cache):
            if path.name in self.damaged:
                try:
                    examine(path)  # it may have been written anew
                except DsctlError:
                    continue
            for key in structures(path):
                found.setdefault(key, path)
        return found

    def prune(self, used: set[str]) -> int:
        """Remove every part that is not `used`, and every damaged shard; return how many bytes that freed."""
        before = sum(path.stat().st_size for path in shard_files(self.cache))
        holders = {path for key, path in self.places.items() if key in used}
        for path in sorted(holders):
            keys = [key for key in structures(path) if key in used and self.places[key] == path]
            if len(keys) < len(structures(path)):
                write_shard(self.cache, _read_parts(path, keys))
                holders.discard(path)
        kept = {path.name for path in holders}
        old = {path.name for path in self.places.values()} | self.damaged
        for path in shard_files(self.cache):
            if path.name in old and path.name not in kept:
                path.unlink()
        self.refresh()
        return before - sum(path.stat().st_size for path in shard_files(self.cache))


def _read_parts(path: Path, keys: list[str]) -> Mapping[str, Part]:
    from safetensors import safe_open

    found, parts = structures(path), {}
    with safe_open(path, framework="pt") as opened:
        names = list(opened.keys())
        for key in keys:
            own = sorted(
                (name for name in names if name.startswith(f"{key}/")), key=lambda name: int(name[len(key) + 1 :])
            )
            parts[key] = Part(found[key], tuple(opened.get_tensor(name).clone() for name in own))
    return parts
