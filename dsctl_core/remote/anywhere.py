"""Look at files, and read them, wherever they are: on a disk, or at an address that is held in a path.

What asks here with a local path gets what `pathlib` says. A remote file is looked up in the listing of its dataset,
which `list_again` makes, or else with a request of its own, as in a process that was started for some files.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, partial
from itertools import islice, takewhile
from pathlib import Path
from typing import NamedTuple

from dsctl_core.remote.address import address_of, is_remote, is_web, names_of_root
from dsctl_core.remote.archives import TAR, Inner, may_be_inside, shards, split
from dsctl_core.remote.errors import RemoteError
from dsctl_core.remote.local import local_copies
from dsctl_core.remote.parquet import read_cell
from dsctl_core.remote.store import Entry, Remote
from dsctl_core.remote.tar import BLOCK, Container, index_of

log = logging.getLogger(__name__)
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
        found = sorted(entry for entry in remote.list() if entry.name)  # some stores list a file as what is below it
        odd = [entry.name for entry in found if not {"", ".", ".."}.isdisjoint(entry.name.split("/"))]
        if odd:
            found = [entry for entry in found if entry.name not in set(odd)]
            log.warning("%d files below %s are left out: %r is no path of a file", len(odd), remote.address, odd[0])
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
        first = bisect_left(self.names, start)
        return _kinds(takewhile(lambda each: each.startswith(start), islice(self.names, first, None)), start)


def _kinds(names: Iterable[str], start: str) -> list[Kind]:
    """Return what is in a folder, sorted by name: `names` are those of all files below it, which begin with `start`."""
    found: dict[str, bool] = {}
    for name in names:
        first, slash, _ = name[len(start) :].partition("/")
        found[first] = found.get(first, False) or bool(slash)
    return [Kind(name, is_folder) for name, is_folder in sorted(found.items())]


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


def look_again() -> None:
    """Forget the files that were looked up one by one: what is there now is what counts."""
    _single.cache_clear()


def is_apart(path: str | Path) -> bool:
    """Return whether a path is not that of a file of its own on a disk: it is remote, or in an archive."""
    return is_remote(path) or (may_be_inside(str(path)) and _inner(path) is not None)


def is_file(path: Path) -> bool:
    """Return whether there is a file at `path`."""
    return _item(path) is not None if is_apart(path) else path.is_file()


def is_dir(path: Path) -> bool:
    """Return whether there is a folder at `path`, or a tar, which is one; a web server has no folders."""
    tars = _tars(path)
    if tars:
        return _container(tars[0]) is not None
    inner = _inner(path)
    if inner is not None:
        start = f"{inner.name}/"
        tar = _container(inner.archive) if inner.archive.endswith(TAR) else None
        return tar is not None and any(name.startswith(start) for name in index_of(tar)["files"])
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
    return is_file(path) or is_dir(path) if is_apart(path) else path.exists()


def inside(folder: Path) -> list[Kind]:
    """Return what is in a folder, sorted by name. Raises OSError, or RemoteError for one that cannot be listed."""
    if not is_apart(folder) and not _tars(folder):
        return sorted(Kind(entry.name, entry.is_dir()) for entry in os.scandir(folder))
    if _inner(folder) is not None or _tars(folder):
        return _inside_tar(folder)
    address = address_of(folder)
    listing, name = _listing_of(address)
    return listing.inside(name) if listing is not None else Listing(Remote(address)).inside("")


@contextmanager
def local(path: Path) -> Iterator[Path]:
    """Give the path of a local file with the content of the file at `path`, which stays until the block ends.

    Raises FileNotFoundError if there is none.
    """
    if not is_apart(path):
        yield path
        return
    with _required(path).hold() as copy:
        yield copy


def state_of(path: str | Path) -> tuple[int, bytes] | None:
    """Return the size of the remote file at `path` and a digest of 32 bytes of its version; None if there is none."""
    item = _item(path)
    return None if item is None else (item.size or 0, _digest(item.key))


def state_of_folder(folder: Path) -> str | None:
    """Return a digest of all that is below an address, or in a tar; None where that is not listed."""
    tars = _tars(folder)
    if tars:
        found = [_container(archive) for archive in tars]
        return None if None in found else _digest("\n".join(each.state for each in found if each is not None)).hex()
    if not is_remote(folder):
        return None
    listing, name = _listing_of(address_of(folder))
    return None if listing is None or name else listing.state


def size_of(path: Path) -> int:
    """Return the bytes of a file; raise FileNotFoundError if there is none."""
    if not is_apart(path):
        return path.stat().st_size
    return _bytes_of(_required(path))


def file_size(path: str) -> int | None:
    """Return the bytes of a regular file at a path of text; None if there is none."""
    if is_apart(path):
        item = _item(path)
        return None if item is None else _bytes_of(item)
    try:
        status = os.stat(path)  # noqa: PTH116 - for millions of texts
    except (OSError, ValueError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def digests(paths: Iterable[Path], of: Callable[[Iterable[Path]], dict[Path, str]]) -> dict[Path, str]:
    """Return what `of` returns for files, by path; the copies of remote ones are held one after another."""
    wanted = list(paths)
    found = of(path for path in wanted if not is_apart(path))
    for path in filter(is_apart, wanted):
        with local(path) as copy:
            found[path] = of([copy])[copy]
    return found


class Item(NamedTuple):
    """A file that is not one of its own on a disk: its size, if that is known, what identifies it, and its copy."""

    size: int | None
    key: str
    hold: Callable[[], AbstractContextManager[Path]]


def _item(path: str | Path) -> Item | None:
    inner = _inner(path)
    if inner is not None:
        return _item_inside(inner)
    entry = _entry(path)
    if entry is None:
        return None
    address = address_of(path)
    hold = partial(local_copies().held, _root(address)[0], entry)
    return Item(entry.size, f"{address}\n{entry.size}\n{entry.version}", hold)


def _item_inside(inner: Inner) -> Item | None:
    container = _container(inner.archive)
    if container is None or not inner.name:
        return None
    copies, suffix = local_copies(), Path(inner.name).suffix
    if inner.archive.endswith(TAR):
        place = index_of(container)["files"].get(inner.name)
        if place is None:
            return None
        key = f"{container.path}\n{container.state}\n{place[0]} {place[1]}"

        def copy_out(target: Path) -> None:
            with target.open("wb") as stream:
                for start in range(place[0], sum(place), BLOCK):
                    stream.write(container.read(start, min(start + BLOCK, sum(place))))

        return Item(place[1], key, partial(copies.made, key, place[1], suffix, copy_out))
    row, _, rest = inner.name.partition("/")
    column = rest.partition("/")[0]
    if not row.isdecimal() or not column:
        return None
    key = f"{container.path}\n{container.state}\n{row} {column}"

    def take_out(target: Path) -> None:
        with local(Path(inner.archive)) as table:
            target.write_bytes(read_cell(table, container.state, int(row), column))

    return Item(None, key, partial(copies.made, key, None, suffix, take_out))


def _inner(path: str | Path) -> Inner | None:
    """Return the archive and the name in it of a path; None for one that is not in an archive."""
    found = split(str(path)) if may_be_inside(str(path)) else None
    if found is None or not found.name:
        return None
    # A folder may have such a name, too.
    return None if not is_remote(found.archive) and os.path.isdir(found.archive) else found  # noqa: PTH112


def _tars(path: Path) -> list[str]:
    """Return the paths of the tars that a path is or, by its braces, stands for."""
    text = str(path)
    names = shards(text) if text.endswith(TAR) else []
    if names:
        return [str(path.parent / name) for name in names]
    found = split(text) if text.endswith(TAR) or may_be_inside(text) else None
    whole = found is not None and not found.name and found.archive.endswith(TAR)
    return [found.archive] if found is not None and whole and is_file(Path(found.archive)) else []


def _inside_tar(folder: Path) -> list[Kind]:
    if shards(str(folder)):
        return [Kind(Path(archive).name, True) for archive in _tars(folder)]
    archive, name = _inner(folder) or (str(folder), "")
    tar = _container(archive)
    if tar is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    start = f"{name}/" if name else ""
    return _kinds((each for each in index_of(tar)["files"] if each.startswith(start)), start)


def tar_at(path: Path) -> Container:
    """Return the tar at `path`; raise FileNotFoundError if there is none."""
    found = _container(str(path))
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return found


def _container(archive: str) -> Container | None:
    if is_remote(archive):
        entry = _entry(archive)
        if entry is None:
            return None
        remote = _root(address_of(archive))[0]
        return Container(archive, entry.size, f"{entry.size} {entry.version}", partial(remote.read, entry))
    try:
        status = os.stat(archive)  # noqa: PTH116 - for every file of a dataset
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    state = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
    return Container(os.path.abspath(archive), status.st_size, state, partial(_read_local, archive))  # noqa: PTH100


def _read_local(path: str, start: int, end: int) -> bytes:
    with open(path, "rb") as stream:  # noqa: PTH123
        stream.seek(start)
        return stream.read(end - start)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _required(path: Path) -> Item:
    item = _item(path)
    if item is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return item


def _bytes_of(item: Item) -> int:
    if item.size is not None:
        return item.size
    with item.hold() as copy:
        return copy.stat().st_size


def _entry(path: str | Path) -> Entry | None:
    """Return the file at an address, with its name below the root of its store."""
    address = address_of(path)
    listing, name = _listing_of(address)
    if listing is None or (not name and not listing.names):  # what has nothing below it may be a file
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
    count = names_of_root(scheme)
    if len(parts) < count:
        raise RemoteError(f"{address} is no folder of a repository", hint=f"write it as {scheme}://datasets/user/name")
    return _opened(f"{scheme}://{'/'.join(parts[:count])}"), "/".join(parts[count:])


@lru_cache(maxsize=LISTINGS)
def _opened(address: str) -> Remote:
    """Return the store at an address: its connections are kept."""
    return Remote(address)
