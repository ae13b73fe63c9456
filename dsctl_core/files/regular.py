"""Open regular files alone: a pipe waits for a writer, and a device may have no end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

KINDS = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"), (stat.S_ISBLK, "device"))


def open_regular(path: Path) -> BinaryIO:
    """Open a file, or what a link leads to, to read its bytes; raise OSError for what is no regular file.

    What is opened is looked at, rather than the path before it: another file could be there by then.
    """
    # Without O_NONBLOCK the opening of a pipe waits; Windows has neither.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = next((name for is_kind, name in KINDS if is_kind(mode)), "device")
            raise OSError(errno.EINVAL, f"it is a {kind}, not a file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, most: int | None = None) -> bytes:
    """Return the content of a regular file; raise OSError for any other, and for one of more than `most` bytes."""
    with open_regular(path) as stream:
        content = stream.read(-1 if most is None else most + 1)
    if most is not None and len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most} bytes", str(path))
    return content
