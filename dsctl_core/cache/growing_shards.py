"""Fetch the shards of a cache block by block: first what the next samples need, then the rest of the same shards.

A sample is read as soon as its own blocks are there, which are a few MB of shards of a hundred. When a shard is whole,
it is compared with the checksum in its name; one that differs ends the run, also where samples were read from it
before.
"""

from __future__ import annotations

import struct
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path

from dsctl_core.cache.codec import tensors_of
from dsctl_core.cache.shard_reader import Shard
from dsctl_core.cache.shards import SUFFIX
from dsctl_core.errors import DsctlError
from dsctl_core.files.safetensors import MOST_HEADER
from dsctl_core.remote.errors import RemoteError
from dsctl_core.remote.growing import GrowingCopy
from dsctl_core.remote.local import local_copies
from dsctl_core.remote.ranges import RangeFile
from dsctl_core.remote.store import Entry, Remote

FETCHERS = 8  # threads; one is busy for about the time that a request waits, and the line must not be idle meanwhile
MOST_OPEN = 128  # copies of a process; what is not open may be removed if the space is needed
MOST_HEADERS = 256
POLL = 0.02  # seconds between two looks at what other processes fetch
OPEN = -1  # the number, in a job, of what comes before the first block

Job = tuple[str, int]  # the name of a shard, and the number of a block; behind the last block is the completion
Part = tuple[str, str]  # the name of a shard, and the key of a part in it
Range = tuple[int, int]


class DamagedShard(DsctlError):
    """A shard does not have the checksum in its name."""


class GrowingShards:
    """The shards of `remote` that this process fetches, of which `sizes` has the bytes.

    `entry` finds one in the store, and `examine` raises DamagedShard for content that is not that of its name.

    Threads may share it. Errors of the background are raised where the shard is read, or in `finish`.
    """

    def __init__(
        self,
        remote: Remote,
        sizes: Mapping[str, int],
        entry: Callable[[str], Entry],
        examine: Callable[[str, Iterator[bytes]], None],
    ) -> None:
        self.remote, self.sizes, self._entry, self._examine = remote, sizes, entry, examine
        self._changed = threading.Condition()
        self._running = 0
        self._ending = threading.Event()  # the process ends, and no thread may be in the midst of something
        weakref.finalize(self, self._ending.set)
        self._copies: OrderedDict[str, GrowingCopy] = OrderedDict()
        self._headers: OrderedDict[str, Shard] = OrderedDict()
        self._needed: dict[tuple[str, Range], None] = {}  # what readers wait for
        self._wanted: dict[Part, None] = {}  # by the next samples, in their order, as far as it is not there
        self._places: dict[Part, list[Range]] = {}  # where these are
        self._incomplete: dict[str, None] = {}  # shards, in the order in which they were wanted
        self._busy: set[Job] = set()
        self._later: dict[Job, float] = {}  # what other processes fetch, and when to look again
        self._failed: dict[str, Exception] = {}
        self._damaged: dict[str, DsctlError] = {}

    def open(self, name: str) -> Shard:
        """Return a shard, of which each tensor is read when its blocks are there."""
        source = RangeFile(self.sizes[name], partial(self._read, name))
        try:
            return Shard(Path(f"{self.remote.address}/{name}"), source)
        except RemoteError:
            raise
        except DsctlError:
            self._read(name, 0, self.sizes[name])  # which says whether it is damaged
            raise

    def want(self, parts: Iterable[Part]) -> None:
        """Fetch these parts in the background, in their order, and then the rest of their shards.

        Raises the DsctlError of a shard that was found to be damaged, whichever it is.
        """
        copies = local_copies()
        listed = list(dict.fromkeys(parts))
        there = {name: copies.has(name, SUFFIX) for name in dict.fromkeys(name for name, _ in listed)}
        with self._changed:
            self._raise_damage()
            self._wanted = {part: None for part in listed if not there[part[0]]}
            self._places = {part: self._places[part] for part in self._wanted if part in self._places}
            self._incomplete |= {name: None for name, _ in self._wanted if name not in self._incomplete}
            self._failed.clear()
            self._start()

    def pending(self) -> int:
        """Return how many shards are not whole yet, of those that were wanted."""
        return len(self._incomplete)

    def finish(self) -> None:
        """Wait until all shards that were wanted are whole and compared; raise the error of the first that fails."""
        with self._changed:
            self._failed.clear()
            while True:
                self._raise_damage()
                for error in self._failed.values():
                    raise error
                if not self._incomplete:
                    return
                self._start()
                self._changed.wait(POLL)

    def _read(self, name: str, start: int, end: int) -> bytes:
        """Return a range of a shard, when it is there."""
        need = (name, (start, end))
        with self._changed:
            self._failed.pop(name, None)
            try:
                while True:
                    if name in self._damaged:
                        raise self._damaged[name]
                    copy = self._copies.get(name)
                    content = None if copy is None else copy.read(start, end)
                    # Where all is there, to compare it takes a moment, and nothing is read before that.
                    if (
                        copy is not None
                        and content is not None
                        and (copy.whole or next(copy.missing(), None) is not None)
                    ):
                        return content
                    if name in self._failed:
                        raise self._failed.pop(name)
                    self._needed[need] = None
                    self._incomplete.setdefault(name)
                    self._start()
                    self._changed.wait(POLL)
            finally:
                self._needed.pop(need, None)

    def _raise_damage(self) -> None:
        for error in self._damaged.values():
            raise error

    def _start(self) -> None:
        """Start the threads that are missing, if there is work; they end when there is none."""
        self._changed.notify_all()
        while self._incomplete and self._running < FETCHERS and not self._ending.is_set():
            self._running += 1
            # Daemons: a process that ends need not fetch what it does not use.
            threading.Thread(target=self._work, name="shards", daemon=True).start()

    def _work(self) -> None:
        while (job := self._take()) is not None:
            name, error, done = job[0], None, True
            try:
                done = self._do(*job)
            except Exception as caught:  # noqa: BLE001 - raised where it matters: by the reader
                error = caught
            with self._changed:
                self._busy.discard(job)
                if not done:
                    self._later[job] = time.monotonic() + POLL
                if error is not None:
                    self._record(name, error)
                self._changed.notify_all()

    def _record(self, name: str, error: Exception) -> None:
        if isinstance(error, DamagedShard):
            self._damaged[name] = error
            self._incomplete.pop(name, None)
        else:
            self._failed[name] = error

    def _take(self) -> Job | None:
        """Return what is to be done next, when there is something; None when this thread is to end."""
        with self._changed:
            while True:
                if self._ending.is_set():
                    self._running -= 1
                    return None
                now = time.monotonic()
                self._later = {job: then for job, then in self._later.items() if then > now}
                for job in self._jobs():
                    if job not in self._busy and job not in self._later:
                        self._busy.add(job)
                        return job
                if not self._busy and not self._later:
                    self._running -= 1
                    return None
                self._changed.wait(POLL if self._later else None)

    def _jobs(self) -> Iterator[Job]:
        """Yield what is to be done, the most urgent first."""
        for name, (start, end) in list(self._needed):
            yield from self._missing(name, [(start, end)])
        for part in list(self._wanted):
            jobs = list(self._missing(part[0], self._places_of(part)))
            if not jobs and part in self._places:
                self._wanted.pop(part, None)
            yield from jobs
        for name in list(self._incomplete):
            copy = self._copies.get(name)
            if copy is not None and copy.whole:
                del self._incomplete[name]
                self._changed.notify_all()
            else:
                jobs = list(self._missing(name, [(0, self.sizes[name])]))
                if copy is not None and not jobs and name not in self._failed:
                    jobs = [(name, copy.count)]
                yield from jobs

    def _missing(self, name: str, ranges: Iterable[Range]) -> Iterator[Job]:
        copy = self._copies.get(name)
        if name in self._failed or name in self._damaged:
            return
        if copy is None:
            yield name, OPEN
            return
        for start, end in ranges:
            yield from ((name, number) for number in copy.missing(start, end))

    def _places_of(self, part: Part) -> list[Range]:
        """Return the ranges of the tensors of a part; of the header while that is not there."""
        if part in self._places:
            return self._places[part]
        copy = self._copies.get(part[0])
        if copy is None:
            return [(0, 8)]
        try:
            header = self._header(part[0], copy)
            if isinstance(header, int):
                return [(0, header)]
            numbers = [n for value in header.structure(part[1]).values() for n in tensors_of(value)]
            places = [header.place(f"{part[1]}/{n}") for n in numbers]
            if any(end > copy.size for _, end in places):
                raise ValueError(f"{part[0]} is shorter than its header says")
            self._places[part] = places
        except (DsctlError, LookupError, TypeError, ValueError):  # its checksum will say what is wrong
            self._places[part] = [(0, copy.size)]
        return self._places[part]

    def _header(self, name: str, copy: GrowingCopy) -> Shard | int:
        """Return a shard with its header, or, while that is not there, how many bytes are needed for it."""
        if name not in self._headers:
            length = copy.read(0, min(8, copy.size))
            if length is None:
                return min(8, copy.size)
            end = min(8 + min(struct.unpack("<Q", length.ljust(8, b"\0"))[0], MOST_HEADER), copy.size)
            found = copy.read(0, end)
            if found is None:
                return end
            self._headers[name] = Shard(copy.path, BytesIO(found))
            while len(self._headers) > MOST_HEADERS:
                self._headers.popitem(last=False)
        return self._headers[name]

    def _do(self, name: str, number: int) -> bool:
        """Do a job; return False where another process does it."""
        if number == OPEN:
            opened = GrowingCopy(local_copies(), local_copies().path(name, SUFFIX), self.sizes[name])
            with self._changed:
                self._copies[name] = opened
                while len(self._copies) > MOST_OPEN:
                    self._copies.popitem(last=False)
            return True
        with self._changed:
            copy = self._copies.get(name)
            if copy is None:  # it was closed in favour of others
                return True
            self._copies.move_to_end(name)
        if number == copy.count:
            return copy.complete(partial(self._examine, name))
        return copy.fetch(number, partial(self.remote.pull, self._entry(name)))
