"""Decide which names of a repository may become files of a folder, and whether a file there may be written over.

Names come from whoever owns the repository, so each is checked before it is used as a path.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath

from dsctl_core.errors import DsctlError

NOTES = ".dsctl"  # the folder of our own records in a download folder
FORBIDDEN = (".git", NOTES)  # git runs what is in the first; the second is ours
LONGEST = 220  # bytes of a name: file systems take 255, and clients append to the names of partial files
LONGEST_PATH = 3800  # bytes, of the 4096 that Linux takes
DEVICES = {"con", "prn", "aux", "nul", *(f"{name}{n}" for name in ("com", "lpt") for n in range(10))}
OWNER = "leave it out with --exclude, or report it to the owner"


def safe_path(path: str, *, windows: bool = os.name == "nt") -> PurePosixPath:
    """Return a path in a repository; raise `DsctlError` if no file of that name may be written.

    That is a path that leads out of the folder, one into `.git` or into our own records, one with control characters,
    one that is too long, and for `windows` a name that is reserved there.
    """
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path or not pure.parts:
        raise _refused(path, "whose path leads out of the folder")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in path):
        raise _refused(path, "whose name has control characters")
    for part in pure.parts:
        if part.rstrip(". ").casefold() in FORBIDDEN:
            raise _refused(path, f"which would be written into {part}")
        if len(part.encode()) > LONGEST:
            raise _refused(f"{path[:40]}...", f"with a name of {len(part.encode())} bytes, more than {LONGEST}")
        if windows and (part.split(".")[0].rstrip().casefold() in DEVICES or part.endswith((".", " "))):
            raise _refused(path, "whose name Windows reserves")
    return pure


def targets(paths: Iterable[str], folder: Path) -> list[Path]:
    """Return the path in `folder` of each of `paths`, which are paths of files in one repository.

    Raises `DsctlError` for one that `safe_path` refuses, and for two that cannot be files of one folder.
    """
    found = {path: safe_path(path) for path in paths}
    for path, pure in found.items():
        above = next((str(parent) for parent in pure.parents if str(parent) in found), None)
        if above is not None:
            raise _refused(path, f"and a file {above!r}, which would be its folder")
        if len(os.fsencode(folder.absolute() / pure)) > LONGEST_PATH:
            raise _refused(f"{path[:40]}...", f"whose path is longer than {LONGEST_PATH} bytes in {folder}")
    return [folder / pure for pure in found.values()]


def refuse_alike(paths: Iterable[str]) -> None:
    """Raise `DsctlError` for two of `paths` that are one file where the case of letters does not count."""
    seen: dict[str, str] = {}
    for path in paths:
        other = seen.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
        if other != path:
            raise _refused(path, f"and a file {other!r}, which are the same file on this disk")


def ignores_case(folder: Path) -> bool:
    """Return whether the disk of `folder`, which has our records in it, takes a.txt and A.txt for one file."""
    return (folder / NOTES.upper()).exists()


def refuse_to_replace(files: Iterable[tuple[str, Path]], folder: Path, fetched: Collection[str]) -> None:
    """Raise `DsctlError` if a download to `folder` would write outside it or over what it did not bring.

    `files` are pairs of a path in the repository and its target in `folder`; `fetched` are the paths of earlier
    downloads to the folder, whose files are replaced.
    """
    for path, target in files:
        require_inside(target.parent, folder)
        if target.is_symlink():
            raise DsctlError(f"{target} is a link, which is neither followed nor replaced", hint="remove it")
        if target.is_dir():
            raise DsctlError(f"{target} is a folder, but a file in the repository", hint="remove it")
        if target.exists() and path not in fetched:
            raise DsctlError(
                f"{target} is there already, differs from the file in the repository, and was not downloaded by dsctl",
                hint="move it away, or choose another folder with --local-dir",
            )


def require_inside(path: Path, folder: Path) -> None:
    """Raise `DsctlError` if the folder `path` below `folder` leads out of it by a link, or is a file."""
    for parent in (path, *path.parents):
        if parent == folder or not parent.is_relative_to(folder):
            return
        if parent.is_symlink() and not parent.resolve().is_relative_to(folder.resolve()):
            raise DsctlError(
                f"{parent} is a link out of {folder}, and nothing is written through it",
                hint="remove it, or choose another folder with --local-dir",
            )
        if parent.exists() and not parent.is_dir():
            raise DsctlError(f"{parent} is a file, but a folder in the repository", hint="move it away")


def _refused(path: str, why: str) -> DsctlError:
    return DsctlError(f"the repository has a file {path!r}, {why}", hint=OWNER)
