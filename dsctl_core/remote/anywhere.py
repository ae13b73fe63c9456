"""Look at files, and read them, wherever they are: on a disk, or at an address that is held in a path.

What asks here with a local path gets what `pathlib` says. For remote files see dsctl_core.remote.lookup.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dsctl_core.remote.address import address_of, is_remote, is_web
from dsctl_core.remote.archives import TAR, Inner, may_be_inside, shards, split
from dsctl_core.remote.local import Opener, fill, local_copies
from dsctl_core.remote.lookup import Kind, Listing, entry_at, kinds, listing_of, root_of
from dsctl_core.remote.parquet import read_cell
from dsctl_core.remote.ranges import RangeFile
from dsctl_core.remote.store import Remote
from dsctl_core.remote.tar import BLOCK, Container, index_of

MEMBER = 2**16  # bytes that are read at a time of a file in a tar


def is_apart(path: str | Path) -> bool:
    """Return whether a path is not that of a file of its own on a disk: it is remote, or in an archive."""
    return is_remote(path) or (may_be_inside(str(path)) and _inner(path) is not None)


def may_be_apart(text: str) -> bool:
    """Return whether one of the paths in a text may be apart; of files on a disk most texts have none."""
    return ":/" in text or may_be_inside(text)


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
    listing, name = listing_of(address)
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
    listing, name = listing_of(address)
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


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open the file at `path` to read it. What lies in an archive on a disk is read in place, without a copy.

    Raises FileNotFoundError if there is none.
    """
    with _required(path).open() if is_apart(path) else path.open("rb") as stream:
        yield stream


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
    listing, name = listing_of(address_of(folder))
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


def digests(
    paths: Iterable[Path], of: Callable[[Iterable[Path]], dict[Path, str]], of_stream: Callable[[BinaryIO], str]
) -> dict[Path, str]:
    """Return what `of` returns for files, by path; of others, one after another, what `of_stream` returns."""
    wanted = list(paths)
    found = of(path for path in wanted if not is_apart(path))
    for path in filter(is_apart, wanted):
        with opened(path) as stream:
            found[path] = of_stream(stream)
    return found


class Item(NamedTuple):
    """A file that is not one of its own on a disk.

    It has a size, if that is known, what identifies it, a local copy, and what opens it, where it can in its place.
    """

    size: int | None
    key: str
    hold: Callable[[], AbstractContextManager[Path]]
    open: Callable[[], AbstractContextManager[BinaryIO]]


def _item(path: str | Path) -> Item | None:
    inner = _inner(path)
    if inner is not None:
        return _item_inside(inner)
    entry = entry_at(path)
    if entry is None:
        return None
    address = address_of(path)
    hold = partial(local_copies().held, root_of(address)[0], entry)
    return Item(entry.size, f"{address}\n{entry.size}\n{entry.version}", hold, partial(_opened_copy, hold))


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

        def copy_out(new: Opener) -> None:
            with new(place[1]) as stream:
                for start in range(place[0], sum(place), BLOCK):
                    stream.write(container.read(start, min(start + BLOCK, sum(place))))

        hold = partial(copies.made, key, suffix, copy_out)
        in_place = partial(_opened_member, inner, place[0], place[1])
        return Item(place[1], key, hold, partial(_opened_copy, hold) if is_remote(inner.archive) else in_place)
    row, _, rest = inner.name.partition("/")
    column = rest.partition("/")[0]
    if not row.isdecimal() or not column:
        return None
    key = f"{container.path}\n{container.state}\n{row} {column}"

    def content() -> bytes:
        with local(Path(inner.archive)) as table:
            return read_cell(table, container.state, int(row), column)

    hold = partial(copies.made, key, suffix, lambda new: fill(new, content()))
    return Item(None, key, hold, lambda: BytesIO(content()))


@contextmanager
def _opened_copy(hold: Callable[[], AbstractContextManager[Path]]) -> Iterator[BinaryIO]:
    with hold() as copy, copy.open("rb") as stream:
        yield stream


@contextmanager
def _opened_member(inner: Inner, first: int, size: int) -> Iterator[BinaryIO]:
    """Open a file of a tar on a disk, of `size` bytes from byte `first` on, in its place."""
    with Path(inner.archive).open("rb", buffering=0) as tar:

        def read(start: int, end: int) -> bytes:
            tar.seek(first + start)
            return tar.read(end - start)

        yield BufferedReader(RangeFile(size, read, inner.name), MEMBER)


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
    return kinds((each for each in index_of(tar)["files"] if each.startswith(start)), start)


def tar_at(path: Path) -> Container:
    """Return the tar at `path`; raise FileNotFoundError if there is none."""
    found = _container(str(path))
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return found


def _container(archive: str) -> Container | None:
    if is_remote(archive):
        entry = entry_at(archive)
        if entry is None:
            return None
        remote = root_of(address_of(archive))[0]
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
    with item.open() as stream:
        return stream.seek(0, os.SEEK_END)
