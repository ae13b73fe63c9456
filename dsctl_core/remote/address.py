"""Tell addresses of remote files from local paths, and refuse those with credentials in them.

An address can be held in a `pathlib.Path`, which folds `s3://bucket/name` into `s3:/bucket/name`: options, tables and
errors keep one type for both kinds. A local folder whose name is such a scheme is reached by its absolute path.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from dsctl_core.errors import UsageError

SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/+(?=[^/])", re.IGNORECASE)  # of two letters or more: C:/ is a drive
SHORTEST = 6  # characters of the shortest address, ab:/cd; most paths are told apart by their first ones
HINT = "give the address alone: credentials come from the environment, as the client library of the store reads them"


def is_remote(path: str | Path) -> bool:
    """Return whether a text or a path is an address, such as `s3://bucket/folder`."""
    text = path if isinstance(path, str) else os.fspath(path)
    return ":/" in text[:24] and SCHEME.match(text) is not None


def address_of(path: str | Path) -> str:
    """Return the address in a text or a path, `s3://bucket/folder`, without a slash at its end.

    Raises UsageError for one with a user, a password, a query or a chain of schemes in it: it would be written into
    files and messages.
    """
    text = str(path)
    found = SCHEME.match(text)
    if found is None:
        raise UsageError(f"{text!r} is no address", hint="write it as s3://bucket/folder")
    scheme, rest = found[1].lower(), text[found.end() :].rstrip("/")
    if scheme == "file":
        raise UsageError(f"{text!r} is an address of a local file", hint="give its path alone")
    if "@" in rest.partition("/")[0]:
        raise UsageError(f"the address {masked(text)} has a user or a password in it", hint=HINT)
    if "?" in rest or "#" in rest:
        raise UsageError(f"the address {masked(text)} has a query in it, which may be a signature", hint=HINT)
    if "::" in rest or any(part == ".." for part in rest.split("/")):
        raise UsageError(f"the address {text!r} is not plain", hint="write it as s3://bucket/folder, without .. and ::")
    return f"{scheme}://{rest}"


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


def place_of(path: Path) -> str:
    """Return what a path is called from everywhere: the address, or the absolute path."""
    return address_of(path) if is_remote(path) else str(path.absolute())


def masked(text: str) -> str:
    """Return an address, or a text with some in it, without what may be a password or a signature."""
    text = re.sub(r"(:/+)[^/@\s]*@", r"\1***@", text)
    return re.sub(r"(:/[^\s?#'\"]*)[?#][^\s'\"]*", r"\1?***", text)
