"""Ranges of bytes as a file that can be sought in."""

from __future__ import annotations

import io
from collections.abc import Callable

Read = Callable[[int, int], bytes]  # the bytes from a first position to before a last one


class RangeFile(io.RawIOBase):
    """A file of `size` bytes, of which `read` returns ranges. Some readers look at the suffix of its `name`."""

    def __init__(self, size: int, read: Read, name: str = "") -> None:
        self.size, self.position, self._read, self.name = size, 0, read, name

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position."""
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read into a buffer."""
        end = min(self.position + len(buffer), self.size)
        data = self._read(self.position, end) if end > self.position else b""
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)
