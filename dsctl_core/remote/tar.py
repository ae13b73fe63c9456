"""Tar files as folders: where each file lies in them, and the texts in them, found in one pass and remembered.

A sample of a WebDataset is then one read of its bytes. The pass over a remote tar reads it in blocks, and skips what is
larger than a block; nothing of it is kept but the index, among the local copies.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, NamedTuple

from pydantic import Field
from typing_extensions import TypedDict

from dsctl_core.errors import DsctlError
from dsctl_core.files.json import checked, parse_json
from dsctl_core.remote.local import local_copies

BLOCK = 8 * 2**20  # bytes of a read while a tar is gone through
TEXTS = (".txt", ".caption", ".json", ".text")  # suffixes of what is kept with the index
LONGEST_TEXT = 2**20  # bytes
KEPT = 64  # indices in memory

Read = Callable[[int, int], bytes]  # the bytes from a first position to before a last one
Place = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]  # first byte, size


class Index(TypedDict):
    """The files in a tar: first byte and size by name, and the content of small texts."""

    files: dict[str, Place]
    texts: dict[str, str]


class Container(NamedTuple):
    """A tar: its path for messages, its size, what tells its content from others, and how to read it."""

    path: str
    size: int
    state: str
    read: Read

    def __hash__(self) -> int:
        return hash((self.path, self.state))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Container) and (self.path, self.state) == (other.path, other.state)


@lru_cache(maxsize=KEPT)
def index_of(tar: Container) -> Index:
    """Return the index of a tar, from the local copies or else by going through it. Raises DsctlError for a bad one."""

    def make(target: Path) -> None:
        target.write_text(json.dumps(_made(tar)), encoding="utf-8")

    with local_copies().made(f"index of {tar.path}\n{tar.state}", None, ".json", make) as path:
        return checked(parse_json(path.read_text(encoding="utf-8"), str(path)), Index, str(path))


def _made(tar: Container) -> Index:
    found = Index(files={}, texts={})
    stream = io.BufferedReader(_Ranges(tar), BLOCK)
    try:
        with tarfile.open(fileobj=stream, mode="r:") as opened:
            for member in opened:
                if not member.isreg() or member.issparse():
                    continue
                if member.offset_data + member.size > tar.size:
                    raise tarfile.ReadError("unexpected end of data")
                name = str(PurePosixPath(member.name))
                if not name.isprintable():
                    raise tarfile.ReadError(f"the file {name!r} has characters in its name that are not of a text")
                found["files"][name] = [member.offset_data, member.size]
                if name.lower().endswith(TEXTS) and member.size <= LONGEST_TEXT:
                    content = opened.extractfile(member)
                    assert content is not None  # it is a regular file
                    with suppress(UnicodeDecodeError):  # it is said where it is read as a caption
                        found["texts"][name] = content.read().decode("utf-8-sig")
    except tarfile.TarError as error:
        packed = tar.read(0, min(3, tar.size))[:2] in (b"\x1f\x8b", b"BZ", b"\x28\xb5", b"\xfd7")
        hint = "unpack it: a compressed tar cannot be read in parts" if packed else "copy or write the file again"
        raise DsctlError(f"{tar.path} cannot be read as a tar: {error}", hint=hint) from error
    return found


class _Ranges(io.RawIOBase):
    """A tar as a file that can be sought in."""

    def __init__(self, tar: Container) -> None:
        self.tar, self.position = tar, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self.position

    def seek(self, offset: int, whence: int = 0) -> int:
        """Set the position."""
        self.position = offset + (0, self.position, self.tar.size)[whence]
        return self.position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read into a buffer."""
        end = min(self.position + len(buffer), self.tar.size)
        data = self.tar.read(self.position, end) if end > self.position else b""
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)
