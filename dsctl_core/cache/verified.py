"""Verify shards when they are first read, and remember which were: each byte is hashed once on a machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dsctl_core.cache.shards import examine, examine_all
from dsctl_core.data.file_store import FileStore, Record, store_path
from dsctl_core.data.known_files import is_fresh, state_from, state_of
from dsctl_core.errors import DsctlError

log = logging.getLogger(__name__)


class VerifiedShards:
    """Which shards of a folder have the checksum in their name: those that this process has hashed, or one before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: set[str] = set()
        self._store: tuple[int, FileStore] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open database, which another process cannot use."""
        return {"folder": self.folder, "_names": set(self._names), "_store": None}

    def require(self, name: str) -> None:
        """Raise `DsctlError` if the shard is missing, incomplete, a pickle, or not equal to its checksum."""
        if name in self._names:
            return
        path = self.folder / name
        state, record = state_of(str(path)), self._opened().find([name]).get(name)
        if state is None or record is None or record.stat != state:
            examine(path)
            self._keep([path], {path: state})
        self._names.add(name)

    def all_of(self, paths: Iterable[Path], *, anew: bool) -> Iterator[tuple[Path, DsctlError | None]]:
        """Verify shards in parallel; yield each with its error or None, in the order of `paths`.

        Unless `anew`, those of which it is remembered are not read.
        """
        wanted = list(paths)
        states = {path: state_of(str(path)) for path in wanted}
        known: set[Path] = set()
        if not anew:
            records = self._opened().find([path.name for path in wanted])
            for path in wanted:
                record = records.get(path.name)
                if record is not None and record.stat == states[path]:
                    known.add(path)
        examined = dict(examine_all(path for path in wanted if path not in known))
        self._keep([path for path, error in examined.items() if error is None], states)
        self._names.update(path.name for path in wanted if examined.get(path) is None)
        yield from ((path, examined.get(path)) for path in wanted)

    def _keep(self, paths: Iterable[Path], states: dict[Path, bytes | None]) -> None:
        records = []
        for path in paths:
            try:
                status = path.stat()
            except OSError:
                continue
            if states[path] == state_from(status) and not is_fresh(status):
                records.append(Record(path.name, state_from(status), None, 0, 0, status.st_size))
        self._opened().put(records)

    def _opened(self) -> FileStore:
        if self._store is None or self._store[0] != os.getpid():  # a process that was forked opens its own
            self._store = os.getpid(), FileStore(store_path(self.folder), log.warning)
        return self._store[1]
