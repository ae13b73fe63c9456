"""Look up files at addresses: in the listing of their dataset, which `list_again` makes, or each by itself.

A process that was started for some files, without the listing, makes a request for each.
"""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache
from itertools import islice, takewhile
from pathlib import Path
from typing import NamedTuple

from dsctl_core.remote.address import address_of, is_remote, is_web, names_of_root
from dsctl_core.remote.errors import RemoteError
from dsctl_core.remote.store import Entry, Remote

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
        return kinds(takewhile(lambda each: each.startswith(start), islice(self.names, first, None)), start)


def kinds(names: Iterable[str], start: str) -> list[Kind]:
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


def entry_at(path: str | Path) -> Entry | None:
    """Return the file at an address, with its name below the root of its store."""
    address = address_of(path)
    listing, name = listing_of(address)
    if listing is None or (not name and not listing.names):  # what has nothing below it may be a file
        return _single(address)
    found = listing.entry(name) if name else None
    return None if found is None else found._replace(name=root_of(address)[1])


def listing_of(address: str) -> tuple[Listing | None, str]:
    """Return the listing that an address is in, and its name in there."""
    for base, listing in _listings.items():
        if address == base:
            return listing, ""
        if address.startswith(base) and address[len(base)] == "/":
            return listing, address[len(base) + 1 :]
    return None, ""


@lru_cache(maxsize=SINGLE)
def _single(address: str) -> Entry | None:
    remote, name = root_of(address)
    return remote.stat(name) if name else None


def remote_at(folder: Path) -> Remote:
    """Return the folder at an address, by the connections that its store has already."""
    root, name = root_of(address_of(folder))
    return root.below(name) if name else root


def root_of(address: str) -> tuple[Remote, str]:
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
