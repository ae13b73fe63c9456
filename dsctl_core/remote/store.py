"""A folder in an object store or on a web server: list it, read it, write to it.

Reads go on at the byte where they stopped, are tried again after errors that may pass, and are of one version: the one
that was listed. Credentials are what the client libraries find in the environment; they are in no message and no file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from dsctl_core.remote.address import address_of, scheme_of
from dsctl_core.remote.backends import WRITABLE, Answer, Backend, Found, HttpBackend, Sink, Stamp, new_token
from dsctl_core.remote.errors import RemoteError, RemoteMissing, Short, changed
from dsctl_core.remote.gcs import GcsBackend
from dsctl_core.remote.retry import Patience, retried
from dsctl_core.remote.s3 import S3Backend

RANGE = 32 * 2**20  # bytes that are asked for at a time


class Entry(NamedTuple):
    """A file of a remote folder.

    `name` is its path below the folder, `size` is in bytes, and `version` is its ETag or what the store has instead.
    """

    name: str
    size: int
    version: str


class Remote:
    """The folder at `address`. It can be sent to other processes, and used after a fork.

    All methods raise RemoteError, in one line: RemoteMissing, RemoteChanged, RemoteExists or RemoteUnreachable where
    one of these fits.
    """

    def __init__(self, address: str | Path, patience: Patience | None = None) -> None:
        self.address, self.patience = address_of(address), patience or Patience()
        self._backend: tuple[int, Backend] | None = None

    def below(self, folder: str) -> Remote:
        """Return a folder below this one, by the same connections."""
        made = Remote(self._address(folder), self.patience)
        made._backend = self._backend
        return made

    def __getstate__(self) -> dict[str, object]:
        """Leave out the connections, which belong to one process."""
        return {"address": self.address, "patience": self.patience, "_backend": None}

    def list(self, below: str = "") -> Iterator[Entry]:
        """Yield all files below the folder, or below its folder `below`, in the order of the store; none if empty."""
        prefix, skipped = self._address(below) if below else self.address, len(self.address) + 1
        for page in self._open().pages(prefix):
            for found in retried(self.patience, prefix, page):
                yield Entry(found.address[skipped:], found.size, found.version)

    def stat(self, name: str) -> Entry | None:
        """Return the file `name`; None if there is none."""
        address = self._address(name)
        found = retried(self.patience, address, lambda: self._open().stat(address))
        return None if found is None else Entry(name, found.size, found.version)

    def read(self, file: str | Entry, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes of a file from `start` to before `end`.

        With an `Entry`, of that version, or RemoteChanged is raised; with a name, of the version that is there now.
        """
        made = bytearray()
        self.pull(file, made.extend, start, end)
        return bytes(made)

    def pull(self, file: str | Entry, sink: Sink, start: int = 0, end: int | None = None) -> None:
        """Do as `read`, and hand the bytes to `sink` as they come: each once, in order, also after an interruption."""
        entry = self._entry(file)
        found = Found(self._address(entry.name), entry.size, entry.version)
        position, last = start, entry.size if end is None else end
        if not 0 <= start <= last <= entry.size:
            raise RemoteError(
                f"{found.address} has {entry.size} bytes, and {start} to {last} were asked for", hint="check the file"
            )

        def take(block: bytes) -> None:
            nonlocal position
            if position + len(block) > until:
                raise changed(found.address)
            sink(block)
            position += len(block)

        while position < last:
            until = min(position + RANGE, last)

            def ask(until: int = until) -> None:
                if position < until:
                    self._open().pull(found, position, until, take)
                if position < until:
                    raise Short(f"the answer ended {until - position} bytes early")

            retried(self.patience, found.address, ask, lambda: position)
        if not retried(self.patience, found.address, lambda: self._open().keeps_version(found)):
            raise changed(found.address)

    def put(self, name: str, data: bytes | Path, *, if_absent: bool = False, if_version: str | None = None) -> str:
        """Write the file `name`, of bytes or of a local file; readers see all of it or what was there before.

        Return the version that it has, "" where the store does not say. With `if_absent`, RemoteExists is raised where
        the file is there, and with `if_version` where another version is there, RemoteMissing where there is none: of
        several writers one succeeds. `if_version` is for stores that are `conditional`.
        """
        address = self._address(name)
        if not self.writable:
            raise RemoteError(
                f"{scheme_of(address)}:// is read, not written: {address}", hint="write to s3:// or gs://"
            )

        def ask(request: Callable[[], Answer]) -> Answer:
            return retried(self.patience, address, request)

        # The token is the same for all tries of one write.
        return self._open().put(address, data, if_absent=if_absent, if_version=if_version, token=new_token(), ask=ask)

    @property
    def writable(self) -> bool:
        """Whether files can be written to stores of this kind."""
        return scheme_of(self.address) in WRITABLE

    @property
    def conditional(self) -> bool:
        """Whether such a store can write on the condition that a certain version, or none, is there."""
        return self._open().conditional

    @property
    def no_version(self) -> str:
        """A version that no file of a `conditional` store has."""
        return backend_of(self.address).no_version

    def stamps(self, below: str = "") -> dict[str, Stamp]:
        """Return the version and the time of all files below the folder `below`, by name; for `conditional` stores."""
        prefix, skipped = self._address(below) if below else self.address, len(self.address) + 1
        found: dict[str, Stamp] = {}
        for page in self._open().stamps(prefix):
            found |= {address[skipped:]: stamp for address, stamp in retried(self.patience, prefix, page).items()}
        return found

    def stamp(self, name: str) -> Stamp | None:
        """Return the version and the time of the file `name`, None if there is none; for `conditional` stores."""
        address = self._address(name)
        return retried(self.patience, address, lambda: self._open().stamp(address))

    def delete(self, name: str, if_version: str | None = None) -> None:
        """Remove the file `name`; that there is none is no error.

        With `if_version`, for `conditional` stores, another version is left there.
        """
        address = self._address(name)
        retried(self.patience, address, lambda: self._open().delete(address, if_version))

    def _entry(self, file: str | Entry) -> Entry:
        entry = self.stat(file) if isinstance(file, str) else file
        if entry is None:
            raise RemoteMissing(f"{self._address(str(file))} does not exist", hint="check the address")
        return entry

    def _address(self, name: str) -> str:
        parts = name.split("/")
        if not name or name.startswith("/") or ".." in parts:
            raise RemoteError(f"{name!r} is no file of {self.address}", hint="give a path below it, without ..")
        return f"{self.address}/{name}"

    def _open(self) -> Backend:
        if self._backend is None or self._backend[0] != os.getpid():  # connections do not outlive a fork
            self._backend = (os.getpid(), open_backend(self.address, self.patience))
        return self._backend[1]


def open_backend(address: str, patience: Patience) -> Backend:
    """Return the backend for the scheme of an address."""
    return backend_of(address)(address, patience)


def backend_of(address: str) -> type[Backend]:
    """Return the kind of backend for the scheme of an address."""
    if scheme_of(address) == "modelscope":
        from dsctl_core.remote.modelscope import ModelScopeBackend  # which needs fsspec to be defined

        return ModelScopeBackend
    kinds: dict[str, type[Backend]] = {"s3": S3Backend, "s3a": S3Backend, "gs": GcsBackend, "gcs": GcsBackend}
    kinds |= {"http": HttpBackend, "https": HttpBackend}
    return kinds.get(scheme_of(address), Backend)
