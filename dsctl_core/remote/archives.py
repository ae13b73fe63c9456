"""Names of files in archives, as if an archive were a folder: `a.tar/0001.jpg`, `a.parquet/17/image/cat.png`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from dsctl_core.remote.address import is_remote

TAR, PARQUET = ".tar", ".parquet"
INSIDE = re.compile(r"(.*?\.(?:tar|parquet))(?:/(.*))?", re.DOTALL)
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_SHARDS = 1_000_000


class Inner(NamedTuple):
    """A file in an archive: the path of the archive, and the name in it; "" for the archive itself."""

    archive: str
    name: str


def may_be_inside(text: str) -> bool:
    """Return whether a path may be one in an archive; most are told apart by this."""
    return ".tar/" in text or ".parquet/" in text


def split(text: str) -> Inner | None:
    """Return the archive and the name in it that a path is made of; None for any other path.

    In `shard-{0..9}.tar`, which stands for ten archives, the first name is that of the archive.
    """
    found = INSIDE.fullmatch(text)
    if found is None:
        return None
    archive, name = found[1], found[2] or ""
    if BRACES.search(archive):
        if not name:
            return Inner(archive, "")
        shard, _, name = name.partition("/")
        folder, slash, _ = archive.rpartition("/")
        return Inner(f"{folder}{slash}{shard}", name) if shard in shards(archive) else None
    return Inner(archive, name)


def is_copied(path: Path) -> bool:
    """Return whether local copies are made of what a dataset at a path has: at an address, or in Parquet tables.

    The local ones are looked for in the folder, or in that of the table. Tars on a disk are read in place.
    """
    if is_remote(path) or path.suffix == PARQUET:
        return True
    walked = os.walk(path.parent if path.is_file() else path)
    return any(name.endswith(PARQUET) for _, _, names in walked for name in names)


def shards(archive: str) -> list[str]:
    """Return the names of the archives that `shard-{000000..000009}.tar` stands for; none for a name without braces."""
    name = archive.rpartition("/")[2]
    found = BRACES.search(name)
    if found is None:
        return []
    first, last = int(found[1]), int(found[2])
    if last - first >= MOST_SHARDS:
        return []
    width = len(found[1]) if found[1].startswith("0") else 0
    return [f"{name[: found.start()]}{number:0{width}}{name[found.end() :]}" for number in range(first, last + 1)]
