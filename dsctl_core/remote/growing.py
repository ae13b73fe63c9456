"""Local copies that are read while they grow: fetched in blocks, in any order, by several processes of a machine.

A copy that grows is a file as long as the whole, in which blocks are missing, and behind it a mark for each block. A
process marks a block with the time while it fetches it, and when it has it; the marks of a process that died count for
`CLAIM` seconds. Once all blocks are there and `complete` has found them good, the file is the copy, under the
name of the copy, as if it had been fetched whole. For systems with `os.pread`, which Windows has not.
"""

from __future__ import annotations

import os
import struct
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import sync_folder, write_error
from dsctl_core.remote.backends import Sink
from dsctl_core.remote.local import GROWING, LocalCopies, hold

FIRST = 256 * 2**10  # bytes of the first block: the header of a file, which is needed before anything else
BLOCK = 4 * 2**20  # bytes of the others, and of a file that is one block; it takes 34 ms at 1 Gbit/s
CLAIM = 5  # seconds without a new mark after which a block is taken over; fetched twice, it is the same
RENEWED = 1  # seconds between two marks of a block that is coming
MARK = struct.Struct("<I")
MISSING, DONE = 0, 2**32 - 1  # marks; any other one is a time
READ = 2**20  # bytes that are read at a time to complete a copy

Pull = Callable[[Sink, int, int], None]  # hands the bytes from a first position to before a last one to a sink


def supported() -> bool:
    """Return whether this system can read copies while they grow."""
    return os.name == "posix"


def block_count(size: int) -> int:
    """Return the number of blocks, and so of requests, of a file of `size` bytes."""
    return 1 if size <= BLOCK else 1 + -(-(size - FIRST) // BLOCK)


class _File:
    """An open file, and for each of its marks whether it was seen to be DONE. It is closed when nobody uses it."""

    def __init__(self, stream: BinaryIO, done: bytearray) -> None:
        self.stream, self.done = stream, done
        weakref.finalize(self, stream.close)  # not __del__: a collector of cycles takes the stream in any order


class GrowingCopy:
    """A file of `size` bytes among the local `copies`, which is or will be at `path`. Threads may share it."""

    def __init__(self, copies: LocalCopies, path: Path, size: int) -> None:
        self.copies, self.path, self.size = copies, path, size
        self.count = block_count(size)
        self._growing = path.with_name(path.name + GROWING)
        self._length = size + MARK.size * (self.count + 1)  # the last mark is of the completion
        with self.copies.locked(path):
            self._file = self._opened()

    def blocks(self, start: int, end: int) -> range:
        """Return the numbers of the blocks with the bytes from `start` to before `end`."""
        return range(self._number(start), self._number(end - 1) + 1) if end > start else range(0)

    def has(self, number: int) -> bool:
        """Return whether a block is there."""
        return self._has(self._file, number)

    def missing(self, start: int = 0, end: int | None = None) -> Iterator[int]:
        """Yield the numbers of the blocks that are not there, of those with the bytes from `start` to before `end`."""
        blocks = self.blocks(start, self.size if end is None else end)
        return (number for number in blocks if not self.has(number))

    @property
    def whole(self) -> bool:
        """Whether the copy was completed, by this process or another."""
        return self._has(self._file, self.count)

    def read(self, start: int, end: int) -> bytes | None:
        """Return the bytes from `start` to before `end`; None if some are missing."""
        file = self._file
        if not all(self._has(file, number) for number in self.blocks(start, end)):
            return None
        return os.pread(file.stream.fileno(), end - start, start)

    def fetch(self, number: int, pull: Pull) -> bool:
        """Fetch a block, if need be; return False where another process is fetching it."""
        file = self._claimed(number)
        if file is None:
            return self.has(number)
        position, end = self._bounds(number)
        renew = self._renewing(file, number)

        def take(data: bytes) -> None:
            nonlocal position
            renew()
            try:
                while data:
                    written = os.pwrite(file.stream.fileno(), data, position)
                    data, position = data[written:], position + written
            except OSError as error:
                raise write_error(self.path, error) from error

        try:
            pull(take, position, end)
        except BaseException:
            self._mark(file, number, MISSING)
            raise
        self._mark(file, number, DONE)
        return True

    def complete(self, examine: Callable[[Iterator[bytes]], None]) -> bool:
        """Make the copy, of which all blocks are there; return False where another process does so.

        Where `examine` raises an error for its content, what was fetched is removed.
        """
        file = self._claimed(self.count)
        if file is None:
            return self.whole
        try:
            examine(_content(file.stream, self.size, self._renewing(file, self.count)))
        except DsctlError:
            with self.copies.locked(self.path):
                if _is_at(file.stream, self._growing):
                    self._growing.unlink()
            raise
        with self.copies.locked(self.path):
            if _is_at(file.stream, self._growing):
                try:
                    os.ftruncate(file.stream.fileno(), self.size)
                    os.fsync(file.stream.fileno())
                    self._growing.replace(self.path)
                    sync_folder(self.path.parent)
                except OSError as error:
                    raise write_error(self.path, error) from error
        return True

    def _opened(self) -> _File:
        """Open the copy, or what is there of it; the lock on it is held. Readers may still have what was open before.

        Raises RemoteError where there is no room for it.
        """
        while True:
            stream = hold(self.path)
            if stream is not None:
                return _File(stream, bytearray(b"\1" * (self.count + 1)))
            stream = hold(self._growing, "r+b")
            if stream is None:
                with self.copies.new(self._growing, self._length) as new:
                    new.seek(self._length)
            elif os.fstat(stream.fileno()).st_size == self._length:
                return _File(stream, bytearray(self.count + 1))
            else:  # of a version of dsctl with other blocks
                stream.close()
                self._growing.unlink(missing_ok=True)

    def _claimed(self, number: int) -> _File | None:
        """Mark a block as being fetched, and return the file to write it to; None if it is there, or others fetch it.

        A file that is no longer among the copies is opened anew: another process has completed it, or removed it.
        """
        with self.copies.locked(self.path):
            if not any(_is_at(self._file.stream, path) for path in (self._growing, self.path)):
                self._file = self._opened()
            file = self._file
            if self._has(file, number) or abs(time.time() - self._marked(file, number)) < CLAIM:
                return None
            self._write_mark(file, number, int(time.time()))
            return file

    def _renewing(self, file: _File, number: int) -> Callable[[], None]:
        """Return what is to be called again and again, so that others see that a block is coming."""
        marked = time.monotonic()

        def renew() -> None:
            nonlocal marked
            if time.monotonic() - marked > RENEWED:
                marked = time.monotonic()
                self._mark(file, number, int(time.time()))

        return renew

    def _has(self, file: _File, number: int) -> bool:
        if not file.done[number] and self._marked(file, number) == DONE:
            file.done[number] = True
        return bool(file.done[number])

    def _marked(self, file: _File, number: int) -> int:
        found = os.pread(file.stream.fileno(), MARK.size, self.size + MARK.size * number)
        return int(MARK.unpack(found)[0]) if found else DONE  # a copy that was completed has no marks

    def _mark(self, file: _File, number: int, mark: int) -> None:
        """Set a mark, unless the file is no longer one that grows, or others have the block, who took it over."""
        with self.copies.locked(self.path):
            if _is_at(file.stream, self._growing) and not self._has(file, number):
                self._write_mark(file, number, mark)

    def _write_mark(self, file: _File, number: int, mark: int) -> None:
        try:
            os.pwrite(file.stream.fileno(), MARK.pack(mark), self.size + MARK.size * number)
        except OSError as error:
            raise write_error(self.path, error) from error

    def _number(self, position: int) -> int:
        return 0 if self.count == 1 or position < FIRST else 1 + (position - FIRST) // BLOCK

    def _bounds(self, number: int) -> tuple[int, int]:
        if self.count == 1:
            return 0, self.size
        start = FIRST + (number - 1) * BLOCK
        return (0, FIRST) if number == 0 else (start, min(start + BLOCK, self.size))


def _content(stream: BinaryIO, size: int, renew: Callable[[], None]) -> Iterator[bytes]:
    for start in range(0, size, READ):
        renew()
        yield os.pread(stream.fileno(), min(READ, size - start), start)


def _is_at(stream: BinaryIO, path: Path) -> bool:
    """Return whether an open file is the one at `path`."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    return False
