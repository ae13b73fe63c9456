"""Hashes that tell values, files and weights from others, without reading all of tens of gigabytes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dsctl_core.errors import DsctlError
from dsctl_core.files.safetensors import safetensors_header

WHOLE = 256 * 2**20  # weight files up to this many bytes are hashed whole
BLOCK, BLOCKS = 64 * 2**10, 1024  # of larger ones, their header and this many blocks of this size


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


def weights_identity(files: Sequence[Path]) -> str:
    """Return a hash that tells the weights in safetensors `files` from others, wherever they are and in any order.

    Large files count with their size, their header and blocks spread evenly over them: training changes all blocks.
    """
    digests = sorted(_digest_weights(file) for file in files)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _digest_weights(path: Path) -> str:
    size = path.stat().st_size
    if size <= WHOLE:
        return digest_file(path)
    made = hashlib.sha256(str(size).encode())
    _, start = safetensors_header(path)
    with path.open("rb") as stream:
        made.update(stream.read(start))
        for number in range(BLOCKS):
            stream.seek(start + (size - BLOCK - start) * number // (BLOCKS - 1))
            made.update(stream.read(BLOCK))
    return made.hexdigest()


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value: equal values have equal digests, on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_files(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the SHA-256 of each file's bytes, of several at a time: hashing and reading both let others run."""
    wanted = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
        return dict(zip(wanted, pool.map(digest_file, wanted), strict=True))
