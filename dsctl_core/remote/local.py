"""Local copies of remote files, in one folder of the user whose bytes are bounded; the longest unused go first.

Several processes use the folder at a time. A reader holds a copy open, with a shared lock where the system has one, and
what is held is not removed. A copy has the name of what it is a copy of, version and all, so it never has to be
compared: it is there, whole, or it is not.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dsctl_core.files.atomic import atomic_path, is_temporary, write_error
from dsctl_core.files.lock import locked
from dsctl_core.files.user_cache import user_cache
from dsctl_core.readable import readable_bytes
from dsctl_core.remote.errors import RemoteError
from dsctl_core.remote.store import Entry, Remote

FOLDER = "remote"  # in the user's cache folder
LIMIT = "DSCTL_REMOTE_CACHE_GB"  # in the environment, so that all processes of a command have it
DEFAULT_GB = 50.0
NAME = r"[0-9a-f]{40}(\.[A-Za-z0-9]{1,12})?"
ABANDONED = 3600  # seconds without a new byte after which a file that was being written is nobody's
# Of the limit. What a process may add before it counts again, and what it leaves free for others that do the same.
UNCOUNTED, SPARE = 64, 8
PATIENCE = 60.0  # seconds to wait for a copy that others hold


class LocalCopies:
    """The copies in `folder`, of `limit` bytes at most."""

    def __init__(self, folder: Path, limit: int, patience: float = PATIENCE) -> None:
        self.folder, self.limit, self.patience = folder, limit, patience
        self._room = 0  # bytes that may be added before the folder is counted again

    @contextmanager
    def held(self, remote: Remote, entry: Entry) -> Iterator[Path]:
        """Give the path of a copy of `entry`, fetched if need be, which stays until the block ends."""

        def fetch(target: Path) -> None:
            with target.open("wb") as stream:
                remote.pull(entry, stream.write)

        key = f"{remote.address}/{entry.name}\n{entry.size}\n{entry.version}"
        with self.made(key, entry.size, Path(entry.name).suffix, fetch) as path:
            yield path

    @contextmanager
    def made(self, key: str, size: int | None, suffix: str, make: Callable[[Path], None]) -> Iterator[Path]:
        """Do the same for a file that `key` identifies and `make` writes: of `size` bytes, if that is known before."""
        path = self._path(key, suffix)
        while (stream := _hold(path)) is None:
            self._make(path, size, make)
        with stream:
            yield path

    def has(self, key: str, suffix: str) -> bool:
        """Return whether there is a copy of what `key` identifies."""
        return self._path(key, suffix).exists()

    def _path(self, key: str, suffix: str) -> Path:
        return self.folder / (hashlib.sha256(key.encode()).hexdigest()[:40] + _plain(suffix))

    def _make(self, path: Path, size: int | None, make: Callable[[Path], None]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise write_error(self.folder, error) from error
        with locked(path.with_name(f"{path.name}.lock")):  # the others wait for the one that fetches it
            if path.exists():
                return
            if size is not None:
                self.make_room(size)
            with atomic_path(path) as temporary:
                make(temporary)
                if size is None:
                    self.make_room(temporary.stat().st_size)
                elif temporary.stat().st_size != size:
                    raise RemoteError(
                        f"a copy of {temporary.stat().st_size} bytes was made of a file of {size}",
                        hint="run the command again",
                    )

    def make_room(self, size: int) -> None:
        """Remove copies until one of `size` bytes can be added; raise RemoteError if that cannot be."""
        if size > self.limit:
            raise RemoteError(
                f"a remote file of {readable_bytes(size)} is larger than all local copies may be together, "
                f"{readable_bytes(self.limit)}",
                hint=f"give a larger --remote-cache-gb, such as {2 * size / 1e9:.3g}",
            )
        if size <= self._room:
            self._room -= size
            return
        share = self.limit // UNCOUNTED
        wanted, until = max(size, share), time.monotonic() + self.patience
        while True:
            with locked(self.folder / "trim.lock"):
                used = self._trim(self.limit - min(self.limit // SPARE, self.limit - size) - wanted)
            if used + size <= self.limit:
                self._room = max(min(share, self.limit - used) - size, 0)
                return
            if time.monotonic() > until:
                raise RemoteError(
                    f"the local copies of remote files take {readable_bytes(used)}, all in use, of "
                    f"{readable_bytes(self.limit)}: there is no room for {readable_bytes(size)}",
                    hint="give a larger --remote-cache-gb, or fewer --dataset-num-workers",
                )
            time.sleep(0.1)

    def _trim(self, most: int) -> int:
        """Remove the copies that were not used for longest until `most` bytes are left; return how many are."""
        found: list[tuple[int, int, Path]] = []
        for entry in os.scandir(self.folder):
            path = Path(entry.path)
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if is_temporary(path, NAME) and time.time() - status.st_mtime > ABANDONED:
                    path.unlink()
                elif path.suffix != ".lock":
                    found.append((status.st_mtime_ns, status.st_size, path))
        used = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if used <= most:
                break
            if not path.name.startswith(".") and _removed(path):
                used -= size
        return used


def local_copies() -> LocalCopies:
    """Return the copies of this user; raise RemoteError where there is no folder for them."""
    folder = user_cache()
    if folder is None:
        raise RemoteError(
            "remote files need a local folder, and this user has no home folder", hint="set XDG_CACHE_HOME to a folder"
        )
    return LocalCopies(folder / FOLDER, disk_limit())


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


def _hold(path: Path) -> BinaryIO | None:
    """Open a copy so that nobody removes it; return None if it is not there."""
    try:
        stream = path.open("rb")
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
