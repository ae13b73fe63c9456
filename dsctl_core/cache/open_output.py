"""Open what `dsctl cache` writes to: a folder, or an address."""

from __future__ import annotations

from pathlib import Path

from dsctl_core.cache.local_output import FolderOutput
from dsctl_core.cache.output import CacheOutput
from dsctl_core.cache.remote_output import RemoteOutput
from dsctl_core.remote.address import is_remote


def open_output(path: Path) -> CacheOutput:
    """Return the cache that is to be written at `path`."""
    return RemoteOutput(path) if is_remote(path) else FolderOutput(path)
