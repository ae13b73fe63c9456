"""Decide what a command may write over: what the same command has made, which the file itself must prove.

Every output of a command goes through one of three checks before anything is loaded or computed: a new name
(`require_new`), a new or empty folder (`require_empty_folder`), or a file that may replace an earlier one of its own
kind (`require_replaceable`). A link is never written through nor replaced, because no command makes one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dsctl_core.errors import DsctlError

HTML = (".html", ".htm")
HEAD = 4096  # bytes of a page in which its marker stands


@dataclass(frozen=True)
class Kind:
    """A kind of file that one command writes. `name` is its description, and `proves` looks for the command's marker.

    `proves` gets the path of an existing regular file, and returns whether this very kind of file is there.
    """

    name: str
    proves: Callable[[Path], bool]


def page_kind(generator: str) -> Kind:
    """Return the kind of the HTML pages whose head names `generator`, such as "dsctl report"."""
    marker = generator_tag(generator).encode()

    def proves(path: Path) -> bool:
        with path.open("rb") as stream:
            return marker in stream.read(HEAD)

    return Kind(f"a page of `{generator}`", proves)


def generator_tag(generator: str) -> str:
    """Return the tag in the head of a page that names the command that wrote it."""
    return f'<meta name="generator" content="{generator}">'


def require_replaceable(path: Path, kind: Kind, flag: str) -> None:
    """Raise a DsctlError unless nothing is at `path`, or a file that proves to be of `kind`.

    `flag` is the option that gives the path, for the hint.
    """
    require_no_link(path, flag)
    _require_parents(path, flag)
    if path.is_dir():
        raise DsctlError(f"{path} is a folder, so no file can be written there", hint=f"give another {flag}")
    if path.exists() and not is_of_kind(path, kind):
        raise not_of_kind(path, kind, flag)


def not_of_kind(path: Path, kind: Kind, flag: str) -> DsctlError:
    """Return the error for a file that is there and not of `kind`."""
    return DsctlError(
        f"{path} is there already and is not {kind.name}, which alone is replaced",
        hint=f"give another {flag}, or remove that file",
    )


def exists_already(path: Path, flag: str) -> DsctlError:
    """Return the error for a name that is to be new and is not."""
    return DsctlError(f"{path} already exists", hint=f"give another {flag}, or remove it")


def require_new(path: Path, flag: str) -> None:
    """Raise a DsctlError unless nothing is at `path`, not even a broken link."""
    require_no_link(path, flag)
    _require_parents(path, flag)
    if path.exists():
        raise exists_already(path, flag)


def require_empty_folder(folder: Path, flag: str) -> None:
    """Raise a DsctlError unless nothing is at `folder`, or an empty folder."""
    require_no_link(folder, flag)
    _require_parents(folder, flag)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is a file, not a folder"
        raise DsctlError(f"{folder} {what}", hint=f"give another {flag}, or remove it")


def require_folder(folder: Path, flag: str) -> None:
    """Raise a DsctlError if `folder` is a file, or cannot be a folder. It may be a link to one."""
    if folder.is_symlink() and not folder.exists():
        raise DsctlError(f"{folder} is a broken link", hint=f"give another {flag}, or mend it")
    if folder.exists() and not folder.is_dir():
        raise DsctlError(f"{folder} is a file, not a folder", hint=f"give another {flag}")
    _require_parents(folder, flag)


def require_no_link(path: Path, flag: str) -> None:
    """Raise a DsctlError if `path` is a link, broken or not."""
    if path.is_symlink():
        raise DsctlError(f"{path} is a link, which is neither followed nor replaced", hint=f"give another {flag}")


def _require_parents(path: Path, flag: str) -> None:
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise DsctlError(f"{parent} is a file, so {path} cannot be in it", hint=f"give another {flag}")


def is_of_kind(path: Path, kind: Kind) -> bool:
    """Return whether a file proves to be of `kind`."""
    try:
        return path.is_file() and kind.proves(path)
    except (OSError, ValueError):  # what cannot be read proves nothing
        return False
