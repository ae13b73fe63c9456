"""Tell a cache folder from others, and lock it for one writer."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from pathlib import Path

from dsctl_core.cache.manifest import INDEX_FILE, MANIFEST_FILE, read_manifest
from dsctl_core.cache.shards import FOLDER
from dsctl_core.errors import DsctlError
from dsctl_core.files import lock
from dsctl_core.files.atomic import is_temporary, remove_temporary
from dsctl_core.files.ownership import require_folder

LOCK_FILE, SKIPPED_FILE = ".lock", "skipped.jsonl"
WORKERS = ".workers"  # the folder by which several commands share the work
SHARD = r"[0-9a-f]{64}\.safetensors"
WRITTEN = re.escape(MANIFEST_FILE) + "|" + re.escape(INDEX_FILE) + "|" + re.escape(SKIPPED_FILE)
GROUP = r"[0-9a-f]{16}"  # of workers: those of one plan
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


def _is_of_a_cache(path: Path) -> bool:
    if path.is_symlink():
        return False
    if path.name == MANIFEST_FILE:  # of another format, or damaged; other programs have a file of this name, too
        return path.is_file() and b'"dsctl_version"' in path.read_bytes()
    if path.name == FOLDER:
        return path.is_dir()
    if path.name == WORKERS:
        return path.is_dir() and all(each.is_dir() and re.fullmatch(GROUP, each.name) for each in path.iterdir())
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


def busy(cache: Path | str) -> DsctlError:
    """Return the error for a cache that another command writes to."""
    return DsctlError(f"another command is writing to {cache}", hint="wait until it is done, or use another folder")


def clear_temporary_files(cache: Path) -> None:
    """Remove incomplete files of a command that was killed. The caller must hold the lock."""
    left = [path for path in cache.glob(".*.tmp") if is_temporary(path, WRITTEN)]
    left += [path for path in (cache / FOLDER).glob(".*.tmp") if is_temporary(path, SHARD)]
    left += [path for path in (cache / FOLDER).glob(".probe.*") if PROBE.fullmatch(path.name)]
    for path in left:
        remove_temporary(path)
