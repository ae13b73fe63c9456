"""Share work between commands, on one machine or several, by files in a folder: a lease ends with who holds it.

A lease is a file that one worker alone can create (O_EXCL, which local disks and NFS from version 3 on keep). Its
holder touches it every BEAT seconds. A lease that was not touched for STALE seconds is free again, and at once where
its process is known to be gone. A worker that was suspended can so hold a lease that another one has taken since: what
is done under a lease must be right when it is done twice.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import uuid
from collections.abc import Collection, Hashable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from dsctl_core.files.atomic import is_temporary, write_error, write_text
from dsctl_core.files.json import decode_json

BEAT, STALE = 10.0, 90.0  # seconds
LEASE, WORKER, NOTE = ".lease", ".worker", ".bad"


class Worker:
    """Context manager: one of the workers that share the work in `folder`.

    `name` is its own. Raises DsctlError where nothing can be written into the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, uuid.uuid4().hex[:12]
        self.held: set[str] = set()
        self._about = json.dumps(this_process()).encode()
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="leases", daemon=True)

    def __enter__(self) -> Worker:
        """Join the workers."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _create(self._own, self._about)
        except OSError as error:
            raise write_error(self._own, error) from error
        self._beats.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave, and give back what is still held."""
        self._ended.set()
        self._beats.join()
        for name in list(self.held):
            self.release(name)
        with suppress(OSError):
            self._own.unlink()
        with suppress(OSError):
            self.folder.rmdir()  # the last one leaves nothing

    def take(self, name: str) -> bool:
        """Take the lease `name`, of hexadecimal digits; return False where another worker holds it."""
        path = self._path(name)
        for _ in range(2):
            try:
                _create(path, self._about)
            except FileExistsError:
                if not self._is_dead(path):
                    return False
                self._bury(path)
            except OSError as error:
                raise write_error(path, error) from error
            else:
                self.held.add(name)
                return True
        return False

    def release(self, name: str) -> None:
        """Give the lease `name` back."""
        self.held.discard(name)
        with suppress(OSError):
            self._path(name).unlink()

    def others(self) -> int:
        """Return how many other workers are at work; what dead ones left is removed."""
        alive = 0
        for path in [*self.folder.glob(f"*{WORKER}"), *self.folder.glob(f"*{LEASE}")]:
            if path == self._own or path.stem in self.held:
                continue
            if self._is_dead(path):
                self._bury(path)
            elif path.suffix == WORKER:
                alive += 1
        return alive

    def note(self, name: str, text: str) -> None:
        """Leave a note for the other workers, and those to come; `name` is of hexadecimal digits."""
        write_text(self.folder / f"{name}{NOTE}", text)

    def notes(self, read: Collection[Hashable] = ()) -> Iterator[tuple[Hashable, str]]:
        """Yield the notes of all workers with what tells each from others, except those in `read`."""
        for path in self.folder.glob(f"*{NOTE}"):
            version = path.name, path.stat().st_mtime_ns
            if version not in read:
                yield version, path.read_text(encoding="utf-8")

    def forget_notes(self) -> None:
        """Remove all notes."""
        temporary = [path for path in self.folder.glob(".*.tmp") if is_temporary(path, rf"[0-9a-f]+\{NOTE}")]
        for path in (*self.folder.glob(f"*{NOTE}"), *temporary):
            path.unlink(missing_ok=True)

    @property
    def _own(self) -> Path:
        return self.folder / f"{self.name}{WORKER}"

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{LEASE}"

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            for path in (self._own, *(self._path(name) for name in list(self.held))):
                with suppress(OSError):  # it was taken away while this process was suspended, or the server is away
                    os.utime(path)

    def _is_dead(self, path: Path) -> bool:
        """Return whether the holder of a lease, or a worker, is gone, or has been silent for too long."""
        try:
            # The clock is that of the file system: those of two machines can differ.
            os.utime(self._own)
            silent = self._own.stat().st_mtime - path.stat().st_mtime
            about = path.read_bytes()
        except OSError:
            return False  # it has just gone, or this worker's own file has: the next look will tell
        return silent > STALE or is_gone(about)

    def _bury(self, path: Path) -> None:
        """Remove what a dead worker left; of several that try, one succeeds."""
        grave = self.folder / f".{path.stem}.{uuid.uuid4().hex[:8]}.dead"
        with suppress(OSError):
            path.rename(grave)
            grave.unlink()


def _create(path: Path, about: bytes) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        os.write(descriptor, about)
    finally:
        os.close(descriptor)


def this_process() -> dict[str, object]:
    """Return what tells this process from all others, for `is_gone`."""
    return {"machine": _machine(), "pid": os.getpid(), "since": _since(os.getpid())}


def is_gone(about: bytes) -> bool:
    """Return whether the process that the JSON of `this_process` tells of ran on this machine, and has ended."""
    try:
        told = decode_json(about)
    except ValueError:
        return False  # it is being written
    if not isinstance(told, dict) or told.get("machine") != _machine():
        return False
    pid = told.get("pid")
    return isinstance(pid, int) and _since(pid) != told.get("since")


def _machine() -> str:
    """Return what tells this machine, since its last start, and its process numbers from those of others."""
    known = [platform.node()]
    with suppress(OSError):
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        known.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(known)


def _since(pid: int) -> float | None:
    """Return when the process `pid` began, which tells it from a later one of that number; None where there is none."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None
