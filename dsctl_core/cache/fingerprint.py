"""What something was made of, as a hash: values, files, weights."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dsctl_core.checkpoint.identify import weight_files
from dsctl_core.errors import DsctlError

WHOLE = 256 * 2**20  # weight files up to this many bytes are hashed whole
BLOCK, BLOCKS = 64 * 2**10, 1024  # of larger ones, their header and this many blocks of this size


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value: equal values have equal digests, on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    made = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(2**20):
                made.update(block)
    except OSError as error:
        raise DsctlError(f"{path} cannot be read: {error.strerror or error}", hint="check the path") from error
    return made.hexdigest()


def digest_files(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the SHA-256 of each file's bytes, of several at a time: hashing and reading both let others run."""
    wanted = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
        return dict(zip(wanted, pool.map(digest_file, wanted), strict=True))


def identify_weights(folder: Path, also: Sequence[Path] = (), notes: Sequence[str] = ()) -> str:
    """Return what tells the component in `folder` from every other: its config, its weights, and the files in `also`.

    `notes` are what else is done to the weights. Large weight files count with their size, their header and
    blocks spread evenly over them, so that a model of tens of gigabytes takes no minute; training changes all blocks.
    """
    files = weight_files(folder)
    parts: list[Any] = [digest_file(folder / "config.json"), *notes]
    parts += [[path.name, _digest_weights(path)] for path in files]
    parts += [[path.name, digest_file(path)] for path in also]
    return f"sha256:{digest(parts)}"


def _digest_weights(path: Path) -> str:
    size = path.stat().st_size
    if size <= WHOLE:
        return digest_file(path)
    made = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        made.update(stream.read(length))
        start = stream.tell()
        for number in range(BLOCKS):
            stream.seek(start + (size - BLOCK - start) * number // (BLOCKS - 1))
            made.update(stream.read(BLOCK))
    return made.hexdigest()
