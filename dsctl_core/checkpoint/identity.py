"""What tells weights from others without reading all of a model of tens of gigabytes, and the hash of a file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from dsctl_core.checkpoint.files import safetensors_header
from dsctl_core.errors import DsctlError

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
