"""Local copies of remote files, in one folder of the user whose bytes are bounded; the longest unused go first.

Several processes use the folder at a time. A reader holds a copy open, with a shared lock where the system has one, and
what is held is not removed. A copy has the name of what it is a copy of, version and all, so it never has to be
compared: it is there, whole, or it is not.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Literal

from dsctl_core.files.atomic import atomic_path, is_temporary, write_error, written_as
from dsctl_core.files.lock import locked
from dsctl_core.files.user_cache import user_cache
from dsctl_core.readable import readable_bytes
from dsctl_core.remote.errors import RemoteError
from dsctl_core.remote.store import Entry, Remote

FOLDER = "remote"  # in the user's cache folder
LIMIT = "DSCTL_REMOTE_CACHE_GB"  # in the environment, so that all processes of a command have it
DEFAULT_GB = 50.0
GROWING = ".growing"  # suffix of a copy of which some blocks are there; see dsctl_core.remote.growing
NAME = rf"[0-9a-f]{{40}}(\.[A-Za-z0-9]{{1,12}})?({re.escape(GROWING)})?"
RESERVED = ".reserved-"  # how the name of a file begins that has the length of what a process may add
ABANDONED = 3600  # seconds without a new byte after which a file that was being written is nobody's
UNCOUNTED = 256  # what part of the limit a process reserves at a time, so that it need not count all files at each
PATIENCE = 60.0  # seconds to wait for a copy that others hold

Opener = Callable[[int], AbstractContextManager[BinaryIO]]  # opens a new file of so many bytes, to write them


class LocalCopies:
    """The copies in `folder`, of `limit` bytes at most.

    What is to be written has its bytes before the first one comes: the file is made as long as it will be while the
    folder is locked. So the lengths of all files together are within the limit at any moment, but for the few that may
    get their names while a folder of thousands is listed.
    """

    def __init__(self, folder: Path, limit: int, patience: float = PATIENCE) -> None:
        self.folder, self.limit, self.patience = folder, limit, patience
        self._reserved: BinaryIO | None = None  # its length is what may be added without counting
        self._alone = Lock()  # of the threads of this process

    @contextmanager
    def held(self, remote: Remote, entry: Entry) -> Iterator[Path]:
        """Give the path of a copy of `entry`, fetched if need be, which stays until the block ends."""

        def fetch(new: Opener) -> None:
            with new(entry.size) as stream:
                remote.pull(entry, stream.write)

        key = f"{remote.address}/{entry.name}\n{entry.size}\n{entry.version}"
        with self.made(key, Path(entry.name).suffix, fetch) as path:
            yield path

    @contextmanager
    def made(self, key: str, suffix: str, make: Callable[[Opener], None]) -> Iterator[Path]:
        """Do the same for a file that `key` identifies; `make` opens it, of the size that it has, and writes it."""
        path = self.path(key, suffix)
        while (stream := hold(path)) is None:
            self._make(path, make)
        with stream:
            yield path

    def has(self, key: str, suffix: str) -> bool:
        """Return whether there is a copy of what `key` identifies."""
        return self.path(key, suffix).exists()

    def path(self, key: str, suffix: str) -> Path:
        """Return where the copy of what `key` identifies is, or will be."""
        return self.folder / (hashlib.sha256(key.encode()).hexdigest()[:40] + _plain(suffix))

    @contextmanager
    def locked(self, path: Path) -> Iterator[None]:
        """Keep others from making the copy at `path`."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise write_error(self.folder, error) from error
        with locked(path.with_name(f"{path.name}.lock")):
            yield

    def _make(self, path: Path, make: Callable[[Opener], None]) -> None:
        with self.locked(path):  # the others wait for the one that fetches it
            if not path.exists():
                make(partial(self.new, path))

    @contextmanager
    def new(self, path: Path, size: int) -> Iterator[BinaryIO]:
        """Give the file that is at `path` after the block, to write its `size` bytes; it has that length already.

        Raises RemoteError where there is no room for it, and where another number of bytes is written.
        """
        with atomic_path(path) as temporary, temporary.open("r+b") as stream:
            self._lengthen(stream, size)
            yield stream
            if stream.tell() != size:
                raise RemoteError(
                    f"a copy of {stream.tell()} bytes was made of a file of {size}", hint="run the command again"
                )

    def _lengthen(self, stream: BinaryIO, size: int) -> None:
        """Make a new file `size` bytes long, and remove copies until there is room for it."""
        if size > self.limit:
            raise RemoteError(
                f"a remote file of {readable_bytes(size)} is larger than all local copies may be together, "
                f"{readable_bytes(self.limit)}",
                hint=f"give a larger --remote-cache-gb, such as {2 * size / 1e9:.3g}",
            )
        with self._alone:
            own = 0 if self._reserved is None else os.fstat(self._reserved.fileno()).st_size
            if own >= size:
                stream.truncate(size)
                self._reserve(own - size)
                return
            self._reserve(0)
            more, until = min(self.limit // UNCOUNTED, self.limit - size), time.monotonic() + self.patience
            while True:
                with locked(self.folder / "trim.lock"):
                    used = self._trim(self.limit - size - more)
                    if used + size <= self.limit:
                        stream.truncate(size)
                        self._reserve(min(more, self.limit - used - size))
                        return
                if time.monotonic() > until:
                    raise RemoteError(
                        f"the local copies of remote files take {readable_bytes(used)}, all in use, of "
                        f"{readable_bytes(self.limit)}: there is no room for {readable_bytes(size)}",
                        hint="give a larger --remote-cache-gb, or fewer --dataset-num-workers",
                    )
                time.sleep(0.1)

    def _reserve(self, size: int) -> None:
        """Reserve `size` bytes for this process, in place of what it had reserved."""
        if self._reserved is None and size:
            path = self.folder / f"{RESERVED}{uuid.uuid4().hex[:8]}"
            path.touch()
            self._reserved = hold(path, "r+b")
            weakref.finalize(self, _give_back, self._reserved, path, os.getpid())
        if self._reserved is not None:
            self._reserved.truncate(size)

    def _trim(self, most: int) -> int:
        """Remove the copies that were not used for longest until `most` bytes are left; return how many are.

        What ended processes have reserved, or have left half written, goes in any case.
        """
        found: dict[Path, tuple[int, int]] = {}
        for path in map(Path, os.scandir(self.folder)):
            with suppress(FileNotFoundError):
                try:
                    status = path.lstat()
                except FileNotFoundError:  # it has got its name meanwhile, which may not be among those to come
                    path = path.with_name(written_as(path) or path.name)
                    status = path.lstat()
                if is_temporary(path, NAME) and time.time() - status.st_mtime > ABANDONED:
                    path.unlink()
                elif path.suffix != ".lock" and not (path.name.startswith(RESERVED) and _removed(path)):
                    found[path] = status.st_mtime_ns, status.st_size
        used = sum(size for _, size in found.values())
        for path, (_, size) in sorted(found.items(), key=lambda each: each[1]):
            if used <= most:
                break
            if not path.name.startswith(".") and _removed(path):
                used -= size
        return used


def _give_back(reserved: BinaryIO | None, path: Path, process: int) -> None:
    """Remove what a process has reserved and not used, in that process alone."""
    if reserved is not None:
        reserved.close()
    if process == os.getpid():
        with suppress(OSError):
            path.unlink()


def fill(new: Opener, content: bytes) -> None:
    """Write the whole content of a new file."""
    with new(len(content)) as stream:
        stream.write(content)


def local_copies() -> LocalCopies:
    """Return the copies of this user; raise RemoteError where there is no folder for them."""
    folder = user_cache()
    if folder is None:
        raise RemoteError(
            "remote files need a local folder, and this user has no home folder", hint="set XDG_CACHE_HOME to a folder"
        )
    return _copies(folder / FOLDER, disk_limit(), os.getpid())


@lru_cache(maxsize=4)
def _copies(folder: Path, limit: int, process: int) -> LocalCopies:
    """Return the copies as one process has them: what is reserved, and the threads, are its own."""
    return LocalCopies(folder, limit)


def limit_disk(gigabytes: float | None) -> None:
    """Set the most bytes of local copies, for this process and those that it starts; None leaves it as it is."""
    if gigabytes is not None:
        os.environ[LIMIT] = repr(gigabytes)


def disk_limit() -> int:
    """Return the most bytes of local copies."""
    text = os.environ.get(LIMIT)
    try:
        gigabytes = DEFAULT_GB if text is None else float(text)
    except ValueError:
        gigabytes = 0.0
    if not 0 < gigabytes < 1e9:
        raise RemoteError(f"{LIMIT} is {text!r}", hint=f"set it to a number of gigabytes, such as {DEFAULT_GB:g}")
    return int(gigabytes * 1e9)


def _plain(suffix: str) -> str:
    """Return the suffix of a copy: readers of files look at it."""
    return suffix if suffix[1:].isascii() and suffix[1:].isalnum() and len(suffix) <= 13 else ""


def hold(path: Path, mode: Literal["rb", "r+b"] = "rb") -> BinaryIO | None:
    """Open a copy so that nobody removes it; return None if it is not there."""
    try:
        stream = path.open(mode)
    except FileNotFoundError:
        return None
    try:
        _lock(stream, alone=False)
        if not os.path.samestat(os.fstat(stream.fileno()), path.stat()):
            raise FileNotFoundError
        os.utime(path)
    except FileNotFoundError:  # it was removed while it was opened
        stream.close()
        return None
    except BaseException:
        stream.close()
        raise
    return stream


def _removed(path: Path) -> bool:
    """Remove a copy unless somebody holds it; return whether it is gone."""
    try:
        with path.open("rb") as stream:
            _lock(stream, alone=True)
            if os.name == "posix":
                path.unlink()
        if os.name != "posix":
            path.unlink()  # Windows refuses while anybody has it open
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _lock(stream: BinaryIO, *, alone: bool) -> None:
    """Lock an open file: shared and waiting, or `alone` and at once, else BlockingIOError."""
    if os.name != "posix":
        return
    import fcntl

    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
