"""Manage a cache folder: lock it for one writer, list its parts, and prune unused ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from dsctl_core.cache.manifest import INDEX_FILE, MANIFEST_FILE, read_manifest
from dsctl_core.cache.shards import FOLDER, Part, examine, examine_all, shard_files, structures, write_shard
from dsctl_core.errors import DsctlError
from dsctl_core.files import lock
from dsctl_core.files.atomic import is_temporary
from dsctl_core.files.ownership import require_folder
from dsctl_core.progress import Progress

LOCK_FILE, SKIPPED_FILE = ".lock", "skipped.jsonl"
WORKERS = ".workers"  # the folder by which several commands share the work
SHARD = r"[0-9a-f]{64}\.safetensors"
WRITTEN = re.escape(MANIFEST_FILE) + "|" + re.escape(INDEX_FILE) + "|" + re.escape(SKIPPED_FILE)
PROBE = re.compile(r"\.probe\.[0-9a-f]{8}")


def require_cache_or_nothing(cache: Path) -> None:
    """Raise a DsctlError unless `cache` is absent, empty, or a cache of ours, which may be incomplete or damaged.

    A valid manifest proves that it is one. Without it, nothing may be there but what `dsctl cache` writes.
    """
    require_folder(cache, "--output-path")
    entries = sorted(cache.iterdir()) if cache.is_dir() else []
    if not entries or has_manifest(cache):
        return
    strange = next((path for path in entries if not _is_of_a_cache(path)), None)
    if strange is None and (cache / FOLDER).is_dir():
        strange = next((path for path in sorted((cache / FOLDER).iterdir()) if not _is_of_shards(path)), None)
    if strange is not None:
        raise DsctlError(
            f"{cache} is not empty and holds no cache: `dsctl cache` did not write {strange}",
            hint="give another --output-path",
        )


def has_manifest(cache: Path) -> bool:
    """Return whether the folder has the manifest of a cache, whole and of this format."""
    try:
        read_manifest(cache)
    except DsctlError:
        return False
    return not (cache / FOLDER).is_symlink()


def named_shards(cache: Path) -> set[str]:
    """Return the names of the shards that a valid manifest lists; none without one."""
    return set(read_manifest(cache).shards) if has_manifest(cache) else set()


def refuse_to_prune(cache: Path) -> None:
    """Raise a DsctlError for a folder with shards but no valid manifest, which would say what is a cache's."""
    if shard_files(cache) and not has_manifest(cache):
        raise DsctlError(
            f"--prune removes nothing from {cache}, whose {MANIFEST_FILE} is missing or damaged",
            hint="run the command without --prune first: it writes the manifest anew",
        )


def _is_of_a_cache(path: Path) -> bool:
    if path.is_symlink():
        return False
    if path.name == MANIFEST_FILE:  # of another format, or damaged; other programs have a file of this name, too
        return path.is_file() and b'"dsctl_version"' in path.read_bytes()
    if path.name == FOLDER:
        return path.is_dir()
    if path.name == WORKERS:
        return path.is_dir() and all(
            each.is_dir() and re.fullmatch("[0-9a-f]{16}", each.name) for each in path.iterdir()
        )
    files = (INDEX_FILE, SKIPPED_FILE, LOCK_FILE)
    return path.name in files or is_temporary(path, WRITTEN) or PROBE.fullmatch(path.name) is not None


def _is_of_shards(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    ours = re.fullmatch(SHARD, path.name) or PROBE.fullmatch(path.name)
    return ours is not None or is_temporary(path, SHARD)


def locked(cache: Path) -> AbstractContextManager[None]:
    """Lock the folder against other writers; the operating system releases the lock of a process that is killed."""
    return lock.locked(cache / LOCK_FILE, busy(cache))


def busy(cache: Path) -> DsctlError:
    """Return the error for a folder that another command writes to."""
    return DsctlError(f"another command is writing to {cache}", hint="wait until it is done, or use another folder")


def clear_temporary_files(cache: Path) -> None:
    """Remove incomplete files of a command that was killed. The caller must hold the lock."""
    left = [path for path in cache.glob(".*.tmp") if is_temporary(path, WRITTEN)]
    left += [path for path in (cache / FOLDER).glob(".*.tmp") if is_temporary(path, SHARD)]
    left += [path for path in (cache / FOLDER).glob(".probe.*") if PROBE.fullmatch(path.name)]
    for path in left:
        path.unlink(missing_ok=True)


class Parts:
    """The parts in a cache folder, and the shard of each (`paths`). Damaged shards count as missing."""

    def __init__(self, cache: Path, progress: Progress) -> None:
        self.cache, self.named = cache, named_shards(cache)
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
        """Remove the parts whose keys are not in `used`, and damaged shards; return the number of bytes freed.

        Only what proves to be of this cache is removed: shards whose name is the checksum of their content, and damaged
        ones that the manifest names.
        """
        before = sum(path.stat().st_size for path in shard_files(self.cache))
        used_shards = {path for key, path in self.paths.items() if key in used}
        for path in sorted(used_shards):
            keys = [key for key in structures(path) if key in used and self.paths[key] == path]
            if len(keys) < len(structures(path)):
                write_shard(self.cache, _read_parts(path, keys))
                used_shards.discard(path)
        kept = {path.name for path in used_shards}
        old = {path.name for path in self.paths.values()} | (self.damaged & self.named)
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
