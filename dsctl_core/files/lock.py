"""A lock on a folder, between processes: the system lifts it when the process that holds it ends, however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import write_error


@contextmanager
def locked(file: Path, busy: DsctlError | None = None) -> Iterator[None]:
    """Hold the lock on `file`, which is there for as long as it is held and has no content; its folder must exist.

    Where another process holds it, `busy` is raised at once; without `busy`, wait. Forked children do not hold it.
    A file that a killed process has left locks nothing.
    """
    lock = FileLock(file, timeout=-1 if busy is None else 0)
    try:
        lock.acquire()
    except Timeout:
        assert busy is not None
        raise busy from None
    except OSError as error:
        raise write_error(file, error) from error
    try:
        yield
    finally:
        try:
            # While it is held: filelock tries again where the file that it has locked is no longer the one of this
            # name. Windows removes no file that is open.
            with suppress(OSError):
                file.unlink()
        finally:
            lock.release()
