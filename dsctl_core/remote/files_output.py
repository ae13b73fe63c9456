"""Write the files that a command makes, in a folder or at an address: whole, and over nothing of others.

The checks are those of dsctl_core.files.ownership, before anything is loaded or computed. At an address they are made
with the objects that are there, and a write demands that nothing else has come meanwhile.
"""

from __future__ import annotations

import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files import ownership
from dsctl_core.files.atomic import prepare_folder
from dsctl_core.files.ownership import Kind, not_of_kind
from dsctl_core.remote.address import address_of, is_remote, scheme_of
from dsctl_core.remote.local import local_copies
from dsctl_core.remote.lookup import root_of
from dsctl_core.remote.store import Remote


class FilesOutput(ABC):
    """Files that are written beside one another, in `folder`. They are called by their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def require_replaceable(self, name: str, kind: Kind, flag: str) -> None:
        """Raise a DsctlError unless there is no file of this name, or one that proves to be of `kind`."""

    @abstractmethod
    def require_new(self, name: str, flag: str) -> None:
        """Raise a DsctlError unless there is nothing of this name."""

    @abstractmethod
    def prepare(self) -> None:
        """Prove that files can be written, before anything long starts."""

    @abstractmethod
    def writing(self, name: str) -> AbstractContextManager[Path]:
        """Give the path to write a file to, or a folder, and what belongs beside it; it is there after the block."""


class LocalFiles(FilesOutput):
    """Files in a folder of this machine."""

    def require_replaceable(self, name: str, kind: Kind, flag: str) -> None:
        """Raise a DsctlError unless there is no file of this name, or one that proves to be of `kind`."""
        ownership.require_replaceable(self.folder / name, kind, flag)

    def require_new(self, name: str, flag: str) -> None:
        """Raise a DsctlError unless there is nothing of this name, not even a broken link."""
        ownership.require_new(self.folder / name, flag)

    def prepare(self) -> None:
        """Make the folder, and prove that files can be written there."""
        prepare_folder(self.folder)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Give the path of the file itself: who writes it does so atomically."""
        yield self.folder / name


class RemoteFiles(FilesOutput):
    """Files at an address. Each is written to a folder of this machine, and then uploaded whole."""

    def __init__(self, folder: Path, remote: Remote, below: str) -> None:
        super().__init__(folder)
        self.remote, self._below = remote, f"{below}/" if below else ""
        self._versions: dict[str, str] = {}  # of the objects that may be replaced, by their names

    def require_replaceable(self, name: str, kind: Kind, flag: str) -> None:
        """Raise a DsctlError unless there is no object of this name, or one that proves to be of `kind`."""
        entry = self.remote.stat(self._below + name)
        if entry is None:
            return
        with local_copies().held(self.remote, entry) as copy:
            if not ownership.is_of_kind(copy, kind):
                raise not_of_kind(self.folder / name, kind, flag)
        self._versions[name] = entry.version

    def require_new(self, name: str, flag: str) -> None:
        """Raise a DsctlError unless there is no object of this name, and none below it."""
        object_name = self._below + name
        if self.remote.stat(object_name) is not None or next(self.remote.list(object_name), None) is not None:
            raise ownership.exists_already(self.folder / name, flag)

    def prepare(self) -> None:
        """Write an object and remove it."""
        probe = f"{self._below}.probe.{uuid.uuid4().hex[:8]}"
        self.remote.put(probe, b"dsctl", if_absent=True)
        self.remote.delete(probe)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Give a path on this machine; all that is there after the block is uploaded.

        Raises RemoteExists where another writer was faster.
        """
        with tempfile.TemporaryDirectory(prefix="dsctl-") as made:
            yield Path(made) / name
            for path in sorted(each for each in Path(made).rglob("*") if each.is_file()):
                self._upload(path.relative_to(made).as_posix(), path)

    def _upload(self, name: str, path: Path) -> None:
        before = self._versions.get(name)
        condition = before if self.remote.conditional else None
        version = self.remote.put(self._below + name, path, if_absent=before is None, if_version=condition)
        self._versions[name] = version


def files_output(file: Path) -> FilesOutput:
    """Return what writes `file` and others beside it. Raises a DsctlError for an address that cannot be written to."""
    if not is_remote(file):
        return LocalFiles(file.parent)
    address = address_of(file)
    remote, name = root_of(address)
    if not name:
        raise UsageError(f"{address} names no file", hint=f"write it as {scheme_of(address)}://bucket/{file.name}")
    if not remote.writable:
        raise DsctlError(f"{scheme_of(address)}:// is read, not written: {address}", hint="write to s3:// or gs://")
    return RemoteFiles(file.parent, remote, name.rpartition("/")[0])
