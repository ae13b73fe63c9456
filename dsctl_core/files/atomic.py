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


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it there when the block succeeds, remove it when it fails.

    The data reaches the disk (fsync) before the rename, so that after a crash `path` is the old file or the new one.
    The file has the mode that the user's umask gives to new files, whichever library writes it. A full disk or a
    missing permission is a DsctlError that names `path`.
    """
    temporary = _temporary_of(path)
    try:
        try:
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
        temporary.unlink(missing_ok=True)


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
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def is_temporary(path: Path, of: str) -> bool:
    """Return whether `path` has the name of a temporary file for a file whose name matches the pattern `of`.

    What is deleted after a crash must match: other programs leave hidden files that end in .tmp, too.
    """
    return re.fullmatch(rf"\.(?:{of})\.[0-9a-f]{{8}}\.tmp", path.name) is not None


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
