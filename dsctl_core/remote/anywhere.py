"""Look at files, and read them, wherever they are: on a disk, or at an address that is held in a path.

What asks here with a local path gets what `pathlib` says. A remote file is looked up in the listing of its dataset,
which `list_again` makes, or else with a request of its own, as in a process that was started for some files.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from dsctl_core.remote.address import address_of, is_remote, is_web
from dsctl_core.remote.errors import RemoteError
from dsctl_core.remote.local import local_copies
from dsctl_core.remote.store import Entry, Remote

LISTINGS = 16  # of datasets that are kept
SINGLE = 4096  # files that were looked up one by one, and are kept


class Kind(NamedTuple):
    """What is at a path: a name in a folder, and whether it is a folder itself."""

    name: str
    is_folder: bool


class Listing:
    """The files below an address at one moment, sorted by name."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        found = sorted(remote.list())
        self.names = [entry.name for entry in found]
        self._entries = found
        self.state = hashlib.sha256("\n".join(map(str, found)).encode("utf-8", "surrogatepass")).hexdigest()

    def entry(self, name: str) -> Entry | None:
        """Return the file `name`."""
        place = bisect_left(self.names, name)
        return self._entries[place] if place < len(self.names) and self.names[place] == name else None

    def has_folder(self, name: str) -> bool:
        """Return whether there are files below `name`; "" is the address itself."""
        start = f"{name}/" if name else ""
        place = bisect_left(self.names, start)
        return place < len(self.names) and self.names[place].startswith(start)

    def inside(self, name: str) -> list[Kind]:
        """Return what is in the folder `name`, sorted by name."""
        start = f"{name}/" if name else ""
        found: dict[str, bool] = {}
        for each in self.names[bisect_left(self.names, start) :]:
            if not each.startswith(start):
                break
            first, slash, _ = each[len(start) :].partition("/")
            found[first] = found.get(first, False) or bool(slash)
        return [Kind(each, is_folder) for each, is_folder in sorted(found.items())]


_listings: dict[str, Listing] = {}  # by address; children of a fork have those of their parent


def list_again(base: Path) -> None:
    """List the files below `base`, if it is an address that can be listed: what is there now is what a command uses."""
    if not is_remote(base):
        return
    address = address_of(base)
    _single.cache_clear()
    _listings.pop(address, None)
    if is_web(address):
        return
    while len(_listings) >= LISTINGS:
        del _listings[next(iter(_listings))]
    _listings[address] = Listing(Remote(address))


def is_file(path: Path) -> bool:
    """Return whether there is a file at `path`."""
    return _entry(path) is not None if is_remote(path) else path.is_file()


def is_dir(path: Path) -> bool:
    """Return whether there is a folder at `path`; a web server has none but those that a listing was asked of."""
    if not is_remote(path):
        return path.is_dir()
    address = address_of(path)
    listing, name = _listing_of(address)
    if listing is not None:
        return listing.has_folder(name)
    if is_web(address):
        return False
    return next(Remote(address).list(), None) is not None


def exists(path: Path) -> bool:
    """Return whether there is a file or a folder at `path`."""
    return is_file(path) or is_dir(path) if is_remote(path) else path.exists()


def inside(folder: Path) -> list[Kind]:
    """Return what is in a folder, sorted by name. Raises OSError, or RemoteError for one that cannot be listed."""
    if not is_remote(folder):
        return sorted(Kind(entry.name, entry.is_dir()) for entry in os.scandir(folder))
    address = address_of(folder)
    listing, name = _listing_of(address)
    return listing.inside(name) if listing is not None else Listing(Remote(address)).inside("")


@contextmanager
def local(path: Path) -> Iterator[Path]:
    """Give the path of a local file with the content of the file at `path`, which stays until the block ends.

    Raises FileNotFoundError if there is none.
    """
    if not is_remote(path):
        yield path
        return
    entry = _entry(path)
    if entry is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    with local_copies().held(_root(address_of(path))[0], entry) as copy:
        yield copy


def state_of(path: str | Path) -> tuple[int, bytes] | None:
    """Return the size of the remote file at `path` and a digest of 32 bytes of its version; None if there is none."""
    entry = _entry(path)
    if entry is None:
        return None
    return entry.size, hashlib.sha256(f"{address_of(path)}\n{entry.size}\n{entry.version}".encode()).digest()


def state_of_folder(folder: Path) -> str | None:
    """Return a digest of all that is below an address; None where that is not listed."""
    listing, name = _listing_of(address_of(folder))
    return None if listing is None or name else listing.state


def size_of(path: Path) -> int:
    """Return the bytes of a file; raise FileNotFoundError if there is none."""
    if not is_remote(path):
        return path.stat().st_size
    entry = _entry(path)
    if entry is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return entry.size


def file_size(path: str) -> int | None:
    """Return the bytes of a regular file at a path of text; None if there is none."""
    if is_remote(path):
        entry = _entry(path)
        return None if entry is None else entry.size
    try:
        status = os.stat(path)  # noqa: PTH116 - for millions of texts
    except (OSError, ValueError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def digests(paths: Iterable[Path], of: Callable[[Iterable[Path]], dict[Path, str]]) -> dict[Path, str]:
    """Return what `of` returns for files, by path; the copies of remote ones are held one after another."""
    wanted = list(paths)
    found = of(path for path in wanted if not is_remote(path))
    for path in filter(is_remote, wanted):
        with local(path) as copy:
            found[path] = of([copy])[copy]
    return found


def _entry(path: str | Path) -> Entry | None:
    """Return the file at an address, with its name below the root of its store."""
    address = address_of(path)
    listing, name = _listing_of(address)
    if listing is None:
        return _single(address)
    found = listing.entry(name) if name else None
    return None if found is None else found._replace(name=_root(address)[1])


def _listing_of(address: str) -> tuple[Listing | None, str]:
    """Return the listing that an address is in, and its name in there."""
    for base, listing in _listings.items():
        if address == base:
            return listing, ""
        if address.startswith(base) and address[len(base)] == "/":
            return listing, address[len(base) + 1 :]
    return None, ""


@lru_cache(maxsize=SINGLE)
def _single(address: str) -> Entry | None:
    remote, name = _root(address)
    return remote.stat(name) if name else None


def _root(address: str) -> tuple[Remote, str]:
    """Return the bucket, host or repository of an address, and the name in it."""
    scheme, _, rest = address.partition("://")
    parts = rest.split("/")
    count = 3 if scheme == "hf" else 1  # datasets/user/name
    if len(parts) < count:
        raise RemoteError(f"{address} is no folder of a repository", hint="write it as hf://datasets/user/name")
    return _opened(f"{scheme}://{'/'.join(parts[:count])}"), "/".join(parts[count:])


@lru_cache(maxsize=LISTINGS)
def _opened(address: str) -> Remote:
    """Return the store at an address: its connections are kept."""
    return Remote(address)
