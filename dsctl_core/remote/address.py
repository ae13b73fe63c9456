"""Tell addresses of remote files from local paths, and refuse those with credentials in them.

An address can be held in a `pathlib.Path`, which folds `s3://bucket/name` into `s3:/bucket/name`: options, tables and
errors keep one type for both kinds. A local folder whose name is such a scheme is reached by its absolute path.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from dsctl_core.errors import BUCKETS, HOST, UsageError, masked

SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/+(?=[^/])", re.IGNORECASE)  # of two letters or more: C:/ is a drive
CHAIN = re.compile(r"([a-z][a-z0-9+.-]*)(:/+\S*)?::(?=/|\S*:/)", re.IGNORECASE)  # simplecache::s3://, zip://a::s3://
CACHES = ("simplecache", "filecache", "blockcache", "cached")
HUBS = ("hf", "modelscope")  # schemes of addresses of repositories
SHORTEST = 6  # characters of the shortest address, ab:/cd; most paths are told apart by their first ones
HINT = "give the address alone: credentials come from the environment, as the client library of the store reads them"


def is_remote(path: str | Path) -> bool:
    """Return whether a text or a path is an address, such as `s3://bucket/folder`."""
    text = path if isinstance(path, str) else os.fspath(path)
    return ":/" in text[:24] and SCHEME.match(text) is not None


def address_of(path: str | Path) -> str:
    """Return the address in a text or a path, `s3://bucket/folder`, without a slash at its end.

    Raises UsageError for one with a user or a password in it: it would be written into files and messages. Names below
    an address, which listings and tables have, may have any characters; `given_address` is for what a user writes.
    """
    text = str(path)
    found = SCHEME.match(text)
    if found is None:
        raise UsageError(f"{text!r} is no address", hint="write it as s3://bucket/folder")
    scheme, rest = found[1].lower(), text[found.end() :].rstrip("/")
    if scheme == "file":
        raise UsageError(f"{text!r} is an address of a local file", hint="give its path alone")
    first = rest.partition("/")[0]
    if not HOST.fullmatch(first) or (":" in first and scheme.endswith(BUCKETS)):
        raise _secret(scheme, rest)
    return f"{scheme}://{rest}"


def given_address(path: str | Path) -> str:
    """Return the same for an address that a user gives.

    Raises UsageError also for one with a query or a chain of schemes in it, and for what may be a password.
    """
    _refuse_chain(str(path))
    address = address_of(path)
    scheme, _, rest = address.partition("://")
    if ":" in rest.partition("/")[0] and "@" in rest:  # a password may have a slash
        raise _secret(scheme, rest)
    if "?" in rest or "#" in rest:
        plain = re.split("[?#]", address)[0]
        raise UsageError(f"the address {plain}?*** has a query in it, which may be a signature", hint=HINT)
    if "::" in rest or any(part == ".." for part in rest.split("/")):
        raise UsageError(
            f"the address {address} is not plain", hint="write it as s3://bucket/folder, without .. and ::"
        )
    return address


def refuse_secrets(path: str | Path) -> None:
    """Raise UsageError for a path with an address in it that may have a password, such as one behind a space.

    So it does for a chain of schemes, which is no address here.
    """
    text = str(path)
    _refuse_chain(text)
    if is_remote(text):
        given_address(text)
    elif masked(text) != text:
        raise UsageError(f"the path {masked(text)!r} has an address in it, with a user or a password", hint=HINT)


def _refuse_chain(text: str) -> None:
    """Raise UsageError for a chain of file systems, as fsspec has them: `simplecache::s3://`, `zip://a.zip::s3://`."""
    found = CHAIN.match(text)
    if found is None:
        return
    first = found[1].lower()
    if first in CACHES:
        hint = "give what is behind it alone, such as s3://bucket/folder: copies are kept anyway, see --remote-cache-gb"
    else:
        hint = (
            "give one address, such as s3://bucket/folder; of archives, tars and Parquet tables are read where they "
            "are, such as s3://bucket/shard-{000000..000009}.tar, and others are to be unpacked"
        )
    raise UsageError(f"an address that begins with {first} and has :: in it is a chain, which is not read", hint=hint)


def _secret(scheme: str, rest: str) -> UsageError:
    shown = re.split("[?#]", rest.rpartition("@")[2])[0] if "@" in rest else ""
    text = f"the address {scheme}://***{'@' if shown else ''}{shown} has a user or a password in it"
    return UsageError(text, hint=HINT)


def is_web(path: str | Path) -> bool:
    """Return whether a text or a path is an address on a web server, which has no listing of its files."""
    return is_remote(path) and scheme_of(address_of(path)) in ("http", "https")


def shown(path: Path) -> str:
    """Return a path as a user writes it: an address with both slashes."""
    return address_of(path) if is_remote(path) else str(path)


def absolute(path: Path) -> Path:
    """Return an address as it is, and a local path as an absolute one."""
    return path if is_remote(path) else path.absolute()


def scheme_of(address: str) -> str:
    """Return the scheme of an address, `s3`."""
    return address.partition("://")[0]


def names_of_root(scheme: str) -> int:
    """Return how many names the root of a store has: a bucket or a host has one, a repository datasets/OWNER/NAME."""
    return 3 if scheme in HUBS else 1


def place_of(path: Path) -> str:
    """Return what a path is called from everywhere: the address, or the absolute path."""
    return address_of(path) if is_remote(path) else str(path.absolute())
