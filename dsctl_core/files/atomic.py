"""Write files and folders that are whole or absent, and say in one line why one could not be written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsctl_core.errors import DsctlError

HEX = r"[0-9a-f]{8}"  # what tells the temporary files for one name from each other


@contextmanager
def atomic_path(path: Path, *, in_folder: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it there when the block succeeds, remove it when it fails.

    The data reaches the disk (fsync) before the rename, so that after a crash `path` is the old file or the new one.
    The file has the mode that the user's umask gives to new files, whichever library writes it. A full disk or a
    missing permission is a DsctlError that names `path`.

    With `in_folder` the temporary path is in a temporary folder beside `path`, for a library that makes temporary files
    of its own next to the file that it writes: what a killed process leaves is in a folder that `is_temporary` knows.
    """
    beside = _temporary_of(path)
    temporary = beside / path.name if in_folder else beside
    try:
        try:
            if in_folder:
                beside.mkdir()
            with temporary.open("xb") as new:  # only a new file shows the umask, which cannot be read without a race
                mode = stat.S_IMODE(os.fstat(new.fileno()).st_mode)
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(mode)
            temporary.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            raise write_error(path, error) from error
    finally:
        remove_temporary(beside)


@contextmanager
def atomic_folder(folder: Path, remove: Callable[[Path], None] = Path.rmdir) -> Iterator[Path]:
    """Give a new folder beside `folder`; rename it to `folder` when the block succeeds, remove it when it fails.

    An existing `folder` is first removed by `remove`, which by default succeeds only if it is empty. The parent exists.
    A full disk or a missing permission is a DsctlError that names `folder`.
    """
    temporary = _temporary_of(folder)
    try:
        try:
            temporary.mkdir()
            yield temporary
            if folder.exists():
                remove(folder)
            temporary.replace(folder)
            sync_folder(folder.parent)
        except OSError as error:
            raise write_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary_of(path: Path) -> Path:
    """Return a new temporary path for `path`; for one that is itself temporary, another for the same file."""
    return path.with_name(f".{written_as(path) or path.name}.{uuid.uuid4().hex[:8]}.tmp")


def is_temporary(path: Path, of: str) -> bool:
    """Return whether `path` has the name of a temporary file for a file whose name matches the pattern `of`.

    What is deleted after a crash must match: other programs leave hidden files that end in .tmp, too.
    """
    written = written_as(path)
    return written is not None and re.fullmatch(of, written) is not None


def written_as(path: Path) -> str | None:
    """Return the name of the file of which `path`, by its name, is a temporary file; None for any other name."""
    found = re.fullmatch(rf"\.(.+)\.{HEX}\.tmp", path.name, re.DOTALL)
    return None if found is None else found[1]


def remove_temporary(path: Path) -> None:
    """Remove a temporary file, or folder with all in it; what is a link is not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable, where the system has a way to."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(path: Path, error: OSError) -> DsctlError:
    """Say in one line why `path` could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DsctlError(f"{path} could not be written: no space left", hint="free some disk space, then run it again")
    reason = error.strerror or str(error)
    return DsctlError(f"{path} could not be written: {reason}", hint="give a path that this user can write to")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return the text of `value` as `write_json` writes it."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def prepare_folder(folder: Path) -> None:
    """Make `folder` and prove that files can be written there, before anything long starts."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{uuid.uuid4().hex[:8]}"
        try:
            probe.write_bytes(b"dsctl")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error


def unclaim(made: list[Path]) -> None:
    """Remove the folders that `claim` made, as far as they are empty: a run that never began leaves nothing."""
    for path in made:
        if not path.is_dir() or any(path.iterdir()):
            return
        path.rmdir()
