"""Share work between commands on any machines by objects in a store: what dsctl_core.files.leases does in a folder.

A lease is an object that was written on the condition that there is none (`If-None-Match: *`, `ifGenerationMatch=0`).
Its holder writes it anew every BEAT seconds, on the condition that it is still the one that it wrote before. A lease
that was not written for STALE seconds, by the clock of the store, is taken over on the condition that it is still the
same one: of several that try, one succeeds. As there, what is done under a lease must be right when it is done twice.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Collection, Hashable, Iterator
from contextlib import suppress

from dsctl_core.files import leases
from dsctl_core.files.json import decode_json
from dsctl_core.files.leases import LEASE, NOTE, WORKER, is_gone, this_process
from dsctl_core.remote.errors import RemoteChanged, RemoteError, RemoteExists, RemoteMissing
from dsctl_core.remote.retry import Patience
from dsctl_core.remote.store import Remote

PROBE = ".probe"


class RemoteWorker:
    """Context manager: one of the workers in `group`, a folder of `folder`, which is below the address of `remote`.

    `name` is its own. With `sharing`, leases can be taken: RemoteError is raised where the store takes no notice of
    conditions. Without, it only shows that it is at work. For stores whose `conditional` is true.
    """

    def __init__(self, remote: Remote, folder: str, group: str, *, sharing: bool = True) -> None:
        self.remote, self.folder, self.group, self.sharing = remote, folder, group, sharing
        self.name = uuid.uuid4().hex[:12]
        self.held: set[str] = set()
        self._beating = Remote(remote.address, Patience(tries=2, timeout=leases.BEAT))  # another beat follows
        self._versions: dict[str, str] = {}  # of the objects that are this worker's, as it wrote them last
        self._writing = threading.RLock()
        self._count = 0
        self._clock = 0.0  # of the store, minus time.monotonic(): by at most one request too low
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="leases", daemon=True)

    def __enter__(self) -> RemoteWorker:
        """Join the workers."""
        if self.sharing:
            require_conditions(self.remote, f"{self.folder}/{self.group}/{self.name}{PROBE}")
        self._write(self.remote, self._own, new=True)
        stamp = self.remote.stamp(self._own)
        self._clock = (0.0 if stamp is None else stamp.time) - time.monotonic()
        self._beats.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave, and give back what is still held."""
        self._ended.set()
        if self._beats.is_alive():
            self._beats.join()
        for name in list(self.held):
            self.release(name)
        self._remove(self._own)

    def take(self, name: str) -> bool:
        """Take the lease `name`, of hexadecimal digits; return False where another worker holds it."""
        lease = self._path(name)
        for _ in range(2):
            with suppress(RemoteExists):
                self._write(self.remote, lease, new=True)
                self.held.add(name)
                return True
            stamp = self.remote.stamp(lease)
            if stamp is None:  # it was given back in between
                continue
            if not self._is_dead(lease, stamp.time):
                return False
            with suppress(RemoteExists, RemoteMissing):  # another one has taken it over, or removed it
                self._write(self.remote, lease, over=stamp.version)
                self.held.add(name)
                return True
        return False

    def release(self, name: str) -> None:
        """Give the lease `name` back."""
        self.held.discard(name)
        self._remove(self._path(name))

    def others(self) -> int:
        """Return how many other workers of the group are at work; what dead ones left is removed."""
        return self.alive().get(self.group, 0)

    def alive(self) -> dict[str, int]:
        """Return how many other workers are at work, by group, also of groups without; remove what dead ones left."""
        counts: dict[str, int] = {}
        for path, stamp in self.remote.stamps(self.folder).items():
            group = path.split("/")[-2]
            counts.setdefault(group, 0)
            if path == self._own or path in self._versions or not path.endswith((WORKER, LEASE, PROBE)):
                continue
            if self._is_dead(path, stamp.time):
                self.remote.delete(path, stamp.version)
            elif path.endswith(WORKER):
                counts[group] += 1
        return counts

    def note(self, name: str, text: str) -> None:
        """Leave a note for the other workers, and those to come; `name` is of hexadecimal digits."""
        self.remote.put(f"{self.folder}/{self.group}/{name}{NOTE}", text.encode())

    def notes(self, read: Collection[Hashable] = ()) -> Iterator[tuple[Hashable, str]]:
        """Yield the notes of all workers with what tells each from others, except those in `read`."""
        for entry in self.remote.list(f"{self.folder}/{self.group}"):
            if entry.name.endswith(NOTE) and (entry.name, entry.version) not in read:
                with suppress(RemoteMissing, RemoteChanged):  # one that was written anew is seen at the next look
                    yield (entry.name, entry.version), self.remote.read(entry).decode()

    def forget_notes(self, group: str | None = None) -> None:
        """Remove all notes of this group or another."""
        for entry in self.remote.list(f"{self.folder}/{group or self.group}"):
            if entry.name.endswith(NOTE):
                self.remote.delete(entry.name)

    @property
    def _own(self) -> str:
        return f"{self.folder}/{self.group}/{self.name}{WORKER}"

    def _path(self, name: str) -> str:
        return f"{self.folder}/{self.group}/{name}{LEASE}"

    def _write(self, remote: Remote, path: str, *, new: bool = False, over: str | None = None) -> None:
        """Write an object of this worker: a new one, or over the version `over`."""
        with self._writing:
            self._count += 1
            about = json.dumps({**this_process(), "worker": self.name, "beat": self._count}).encode()
            condition = self.sharing
            version = remote.put(path, about, if_absent=new and condition, if_version=over if condition else None)
            self._versions[path] = version

    def _remove(self, path: str) -> None:
        with self._writing, suppress(RemoteError):  # what is left is dead to the others after a while
            version = self._versions.pop(path, None)
            if version is not None:
                self.remote.delete(path, version if self.sharing else None)

    def _beat(self) -> None:
        while not self._ended.wait(leases.BEAT):
            for path in [self._own, *map(self._path, list(self.held))]:
                with self._writing, suppress(RemoteError):  # the store does not answer: another beat follows
                    version = self._versions.get(path)
                    try:
                        if version is not None:
                            self._write(self._beating, path, over=version)
                    except (RemoteExists, RemoteMissing):
                        self._find_again(path)

    def _find_again(self, path: str) -> None:
        """See what became of an object that is not as this worker knows it.

        The answer to a beat was lost; or it was taken while this process was suspended, or the store away.
        """
        del self._versions[path]
        stamp = self._beating.stamp(path)
        if stamp is None and path == self._own:
            self._write(self._beating, path, new=True)
        elif stamp is not None and _read(self._beating, path).get("worker") == self.name:
            self._versions[path] = stamp.version

    def _is_dead(self, path: str, written: float) -> bool:
        """Return whether the holder of a lease, or a worker, is gone, or has been silent for too long."""
        if self._clock + time.monotonic() - written > leases.STALE:
            return True
        with suppress(RemoteMissing, RemoteChanged):  # a beat came in between
            return is_gone(self.remote.read(path))
        return False


def _read(remote: Remote, path: str) -> dict[str, object]:
    try:
        told = decode_json(remote.read(path))
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def unshared(address: str) -> RemoteError:
    """Return the error for a store in which there are no leases."""
    return RemoteError(
        f"{address} cannot be shared by several commands: the store has no writes on a condition "
        "(If-None-Match, If-Match)",
        hint="leave --shared out, and let one command write there; or write to s3:// or gs://",
    )


def require_conditions(remote: Remote, probe: str) -> None:
    """Raise RemoteError unless the store refuses a write whose condition does not hold; try it at the name `probe`."""
    if not remote.conditional:
        raise unshared(remote.address)
    about = json.dumps(this_process()).encode()  # so that others know when it is nobody's
    remote.put(probe, about, if_absent=True)
    try:
        for condition in ({"if_absent": True}, {"if_version": remote.no_version}):
            try:
                remote.put(probe, about, **condition)
            except RemoteExists:
                continue
            raise unshared(remote.address)
    finally:
        with suppress(RemoteError):
            remote.delete(probe)
