"""Read the shards of a cache at a remote address: fetched ahead of their use, into bounded local copies.

The order of samples is the same as from a folder. A shard's name is the checksum of its bytes, so a copy is verified
when it is whole, and it is what it is wherever it came from: several runs and processes of a machine share the copies.

Where all shards have room as copies, a sample is read as soon as its own bytes are there, and the rest of its shards
comes after it: see dsctl_core.cache.growing_shards. Else shards come whole before they are read, since they may go
again before they are complete.
"""

from __future__ import annotations

import copy
import hashlib
import os
import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import Any

from dsctl_core.cache.growing_shards import DamagedShard, GrowingShards, Part
from dsctl_core.cache.shard_reader import Shard
from dsctl_core.cache.shards import SUFFIX
from dsctl_core.errors import DsctlError
from dsctl_core.files.safetensors import MOST_HEADER
from dsctl_core.remote.errors import RemoteError
from dsctl_core.remote.growing import supported
from dsctl_core.remote.local import Opener, disk_limit, local_copies
from dsctl_core.remote.lookup import remote_at
from dsctl_core.remote.store import Entry

SPARE = 8  # part of the limit of copies that a process may be fetching at a time
MOST_OPEN = 8  # shards of a process: a copy that is removed while it is open takes its bytes until it is closed
FETCHERS = 4  # threads that fetch shards ahead
HEADER_FETCHERS = 16
HEAD = 64 * 2**10  # bytes that are asked for in place of a header, whose length is not known yet
MOST_HEADS = 256  # headers that are kept


class RemoteShards:
    """The shards in the remote folder `folder`, of which `sizes` has the bytes by name."""

    def __init__(self, folder: Path, sizes: Mapping[str, int]) -> None:
        self.remote, self.sizes = remote_at(folder), dict(sizes)
        self._entries: dict[str, Entry] = {}  # that were found in the store
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._open: OrderedDict[str, Shard] = OrderedDict()
        self._heads: OrderedDict[str, Shard] = OrderedDict()
        self._fetching: dict[str, Future[None]] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._growing: GrowingShards | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process: files, threads and connections."""
        return {"remote": self.remote, "sizes": self.sizes, "_entries": self._entries}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def reopened(self) -> RemoteShards:
        """Return these shards with open files of their own, for another thread; what is being fetched is shared."""
        other = copy.copy(self)
        other._growing = self._grown()
        return other

    def _grown(self) -> GrowingShards | None:
        """Return the shards that are read while they are fetched; None where not all of them have room as copies."""
        self._of_this_process()
        if self._growing is None and grows(sum(self.sizes.values())):
            self._growing = GrowingShards(self.remote, self.sizes, self._entry, self._examine)
        return self._growing

    def __getitem__(self, name: str) -> Shard:
        """Return a shard, fetched if there is no copy; raise DsctlError where that fails, or where it is damaged."""
        self._of_this_process()
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        growing = None if local_copies().has(name, SUFFIX) else self._grown()
        waited = self._fetching.pop(name, None)
        if waited is not None and not waited.cancel():
            waited.exception()  # where it failed, the attempt here says why
        while len(self._open) >= MOST_OPEN:
            self._open.popitem(last=False)[1].close()
        if growing is not None:
            self._open[name] = growing.open(name)
        else:
            with self.copy(name) as path:
                self._open[name] = Shard(path)
        return self._open[name]

    def head(self, name: str) -> Shard:
        """Return a shard of which the header alone is read, for the shapes of its tensors."""
        self._of_this_process()
        if name in self._open:
            return self._open[name]
        if name not in self._heads:
            self.read_heads([name])
        self._heads.move_to_end(name)
        return self._heads[name]

    def read_heads(self, names: Iterable[str]) -> None:
        """Read the headers of shards, several at a time."""
        with ThreadPoolExecutor(HEADER_FETCHERS) as threads:
            wanted = [name for name in dict.fromkeys(names) if name not in self._heads]
            for name, header in zip(wanted, threads.map(self._header, wanted), strict=True):
                self._heads[name] = Shard(Path(f"{self.remote.address}/{name}"), BytesIO(header))
        while len(self._heads) > max(MOST_HEADS, len(wanted)):
            self._heads.popitem(last=False)

    def fetch_ahead(self, parts: Iterable[Part]) -> None:
        """Begin to fetch parts that are not there, each the name of its shard and its key, while others are used.

        Of whole shards no more are fetched at a time than what the copies leave free for others. What goes wrong is
        said to who reads the shard; a damaged shard that was read from before is an error here.
        """
        growing = self._grown()
        if growing is not None:
            growing.want(parts)
            return
        self._fetching = {name: future for name, future in self._fetching.items() if not future.done()}
        room = local_copies().limit // SPARE - sum(self.sizes[name] for name in self._fetching)
        for name in dict.fromkeys(name for name, _ in parts):
            if name in self._fetching or name in self._open or local_copies().has(name, SUFFIX):
                continue
            room -= self.sizes[name]
            if room < 0:
                return
            if self._threads is None:
                self._threads = ThreadPoolExecutor(FETCHERS, thread_name_prefix="shards")
            self._fetching[name] = self._threads.submit(self._fetch, name)

    def pending(self) -> int:
        """Return how many shards were read from, or were to be, and are not verified."""
        return 0 if self._growing is None else self._growing.pending()

    def finish(self) -> None:
        """Wait until these are whole, and raise the DsctlError of one that is damaged or cannot be fetched."""
        if self._growing is not None:
            self._growing.finish()

    def refuse_incomplete(self) -> None:
        """Raise DsctlError for a shard that is missing or has another size, from the listing of the folder."""
        there = self.listed()
        for name in sorted(self.sizes):
            self._require_whole(name, there)

    def listed(self) -> dict[str, int]:
        """Return the bytes of all files in the folder, by name; from now on these versions of them are read."""
        self._entries = {entry.name: entry for entry in self.remote.list()}
        return {name: entry.size for name, entry in self._entries.items()}

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            found = self.remote.stat(name)
            if found is None:
                self._require_whole(name, {})
            else:
                self._entries[name] = found
        return self._entries[name]

    def _require_whole(self, name: str, there: Mapping[str, int]) -> None:
        if there.get(name) != self.sizes[name]:
            found = "is missing" if name not in there else f"has {there[name]} bytes, not {self.sizes[name]}"
            raise DsctlError(f"{self.remote.address}/{name} {found}", hint="copy it there again")

    def verified(self) -> Iterator[tuple[str, DsctlError | None]]:
        """Read every byte of all shards at the address, and yield the name of each, with the error of a bad one.

        Raises RemoteError where the store does not answer.
        """
        there = self.listed()
        for name in sorted(self.sizes):
            try:
                self._require_whole(name, there)
                if local_copies().has(name, SUFFIX):  # which says nothing of what is at the address now
                    made = hashlib.sha256()
                    self.remote.pull(name, made.update)
                    self._require_checksum(name, made.hexdigest())
                else:
                    self._fetch(name)
            except RemoteError:
                raise
            except DsctlError as error:
                yield name, error
            else:
                yield name, None

    def copy(self, name: str) -> AbstractContextManager[Path]:
        """Give the path of a local copy of a shard, fetched and verified if there is none."""
        return local_copies().made(name, SUFFIX, lambda new: self._pull(name, new))

    def _fetch(self, name: str) -> None:
        with self.copy(name):
            pass

    def _pull(self, name: str, new: Opener) -> None:
        made = hashlib.sha256()

        def take(block: bytes) -> None:
            made.update(block)
            stream.write(block)

        with new(self.sizes[name]) as stream:
            self.remote.pull(self._entry(name), take)
            self._require_checksum(name, made.hexdigest())

    def _examine(self, name: str, content: Iterator[bytes]) -> None:
        made = hashlib.sha256()
        for block in content:
            made.update(block)
        self._require_checksum(name, made.hexdigest())

    def _require_checksum(self, name: str, found: str) -> None:
        if f"{found}{SUFFIX}" != name:
            raise DamagedShard(
                f"{self.remote.address}/{name} is damaged: its content does not have the checksum in its name",
                hint="copy it there again, and do not go on from a run that has read from it",
            )

    def _header(self, name: str) -> bytes:
        """Return the beginning of a shard up to the end of its header."""
        file = self._entry(name)
        found = self.remote.read(file, 0, min(HEAD, self.sizes[name]))
        end = 8 + min(struct.unpack("<Q", found[:8].ljust(8, b"\0"))[0], MOST_HEADER)
        return found if end <= len(found) else found + self.remote.read(file, len(found), min(end, self.sizes[name]))

    def _of_this_process(self) -> None:
        if self._process != os.getpid():  # files, threads and connections do not outlive a fork
            self._forget()


def grows(size: int) -> bool:
    """Return whether shards of `size` bytes together are read while they are fetched: there is room for all copies."""
    limit = disk_limit()
    return supported() and size <= limit - limit // SPARE
