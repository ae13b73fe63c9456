"""Tar files as folders: where each file lies in them, and the texts in them, found in one pass and remembered.

A sample of a WebDataset is then one read of its bytes. The pass over a remote tar reads it in blocks, and skips what is
larger than a block; nothing of it is kept but the index, among the local copies.
"""

from __future__ import annotations

import io
import json
import tarfile
from contextlib import suppress
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Annotated, NamedTuple

from pydantic import Field
from typing_extensions import TypedDict

from dsctl_core.errors import DsctlError
from dsctl_core.files.json import checked, parse_json
from dsctl_core.remote.local import Opener, fill, local_copies
from dsctl_core.remote.ranges import RangeFile, Read

BLOCK = 8 * 2**20  # bytes of a read while a tar is gone through
TEXTS = (".txt", ".caption", ".json", ".text")  # suffixes of what is kept with the index
LONGEST_TEXT = 2**20  # bytes
KEPT = 64  # indices in memory
FILE, LINK = "file", "link"
FORM = 2  # of an index: another number for another content

Place = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]  # first byte, size


class Index(TypedDict):
    """The files in a tar: first byte and size by name, the content of small texts, and how many of a kind are left."""

    files: dict[str, Place]
    texts: dict[str, str]
    left: dict[str, int]


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

    def make(new: Opener) -> None:
        fill(new, json.dumps(read_index(tar)).encode())

    with local_copies().made(f"index {FORM} of {tar.path}\n{tar.state}", ".json", make) as path:
        return checked(parse_json(path.read_text(encoding="utf-8"), str(path)), Index, str(path))


def read_index(tar: Container) -> Index:
    """Return the index of a tar by going through it.

    Raises DsctlError for one that is damaged or cut off, for two files of one name, and for a hard link to nowhere.
    """
    found = Index(files={}, texts={}, left={})
    skipped: dict[str, str] = {}  # what is no file of its own, by name: a hard link may lead to it
    stream = io.BufferedReader(RangeFile(tar.size, tar.read), BLOCK)
    try:
        with tarfile.open(fileobj=stream, mode="r:") as opened:
            for member in opened:
                name = str(PurePosixPath(member.name))
                kind = _kind(member)
                if kind == LINK:
                    target = str(PurePosixPath(member.linkname))
                    if target not in found["files"] and target not in skipped:
                        raise tarfile.ReadError(f"{name!r} is a hard link to {target!r}, which is not before it")
                    kind = skipped.get(target, FILE)
                    place = found["files"].get(target, [])
                    if name == target or (place and found["files"].get(name) == place):
                        continue  # a name that was given to tar twice
                else:
                    place = [member.offset_data, member.size]
                    if member.size < 0:
                        raise tarfile.ReadError(f"the file {name!r} has the size {member.size}")
                if kind != FILE:
                    skipped[name] = kind
                    if kind:
                        found["left"][kind] = found["left"].get(kind, 0) + 1
                    continue
                if sum(place) > tar.size:
                    raise tarfile.ReadError("unexpected end of data")
                if not name.isprintable():
                    raise tarfile.ReadError(f"the file {name!r} has characters in its name that are not of a text")
                if name in found["files"]:
                    raise tarfile.ReadError(f"it has two files of the name {name}")
                found["files"][name] = place
                if name.lower().endswith(TEXTS) and place[1] <= LONGEST_TEXT:
                    stream.seek(place[0])
                    with suppress(UnicodeDecodeError):  # it is said where it is read as a caption
                        found["texts"][name] = stream.read(place[1]).decode("utf-8-sig")
            _require_end(tar, opened.offset)
    except (tarfile.TarError, ValueError, OverflowError) as error:  # a ValueError is of a size below 0 in a header
        packed = tar.read(0, min(3, tar.size))[:2] in (b"\x1f\x8b", b"BZ", b"\x28\xb5", b"\xfd7")
        hint = "unpack it: a compressed tar cannot be read in parts" if packed else "copy or write the file again"
        raise DsctlError(f"{tar.path} cannot be read as a tar: {error}", hint=hint) from error
    return found


def _kind(member: tarfile.TarInfo) -> str:
    """Return FILE, LINK, what to call a member that is left out, or "" for one that is none, such as a folder."""
    if member.issparse():
        return "sparse files"
    if member.isreg():
        return FILE
    if member.islnk():
        return LINK
    if member.issym():
        return "symbolic links"
    return "special files" if member.isdev() else ""


def _require_end(tar: Container, end: int) -> None:
    """Raise ReadError unless a tar ends at byte `end`: with blocks of zeros, to the end of the file.

    Python's reader takes a header that it cannot read for the end, and GNU tar the end of the file. Two blocks are
    written; GNU tar reads one alone, too, and any number of further ones.
    """
    if tar.size - end < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it is cut off: nothing marks its end, at byte {tar.size}")
    for start in range(end, tar.size, BLOCK):
        block = tar.read(start, min(start + BLOCK, tar.size))
        if rest := block.lstrip(b"\0"):
            place = start + len(block) - len(rest)
            if place < end + tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"the header at byte {end} is damaged")
            raise tarfile.ReadError(f"there is more behind its end at byte {end}, from byte {place} on")
