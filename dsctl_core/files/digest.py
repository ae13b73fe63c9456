"""Hashes that tell values, files and weights from others, without reading all of tens of gigabytes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from dsctl_core.errors import DsctlError
from dsctl_core.files.safetensors import safetensors_header

WHOLE = 256 * 2**20  # weight files up to this many bytes are hashed whole
SAMPLE, SAMPLES = 16 * 2**10, 4  # of a large file of a dataset, this many blocks of this size
BLOCK, BLOCKS = 64 * 2**10, 1024  # of larger ones, their header and this many blocks of this size


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    try:
        with path.open("rb") as stream:
            return digest_stream(stream)
    except OSError as error:
        raise DsctlError(f"{path} cannot be read: {error.strerror or error}", hint="check the path") from error


def digest_stream(stream: BinaryIO) -> str:
    """Return the SHA-256 of the bytes of an open file, from its beginning."""
    made = hashlib.sha256()
    stream.seek(0)
    while block := stream.read(2**20):
        made.update(block)
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
    return _in_threads(digest_file, paths)


def digest_samples(paths: Iterable[Path]) -> dict[Path, str]:
    """Return a hash of each file: of all bytes of a small one, of the size of a large one and of blocks spread over it.

    The blocks begin at its first byte and end at its last. In a compressed picture or video a change of content moves
    or changes what follows it, up to the checksum at the end, so it shows in them.
    """
    return _in_threads(_digest_sample, paths)


def _digest_sample(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return digest_sample(stream)
    except OSError as error:
        raise DsctlError(f"{path} cannot be read: {error.strerror or error}", hint="check the path") from error


def digest_sample(stream: BinaryIO) -> str:
    """Return the hash of `digest_samples` of an open file."""
    return sample_of(stream, stream.seek(0, os.SEEK_END))


def sample_of(stream: BinaryIO, size: int) -> str:
    """Return the hash of `digest_samples` of an open file of `size` bytes."""
    made = hashlib.sha256(str(size).encode())
    if size <= SAMPLE * SAMPLES:
        stream.seek(0)
        made.update(stream.read())
        return made.hexdigest()
    for number in range(SAMPLES):
        stream.seek((size - SAMPLE) * number // (SAMPLES - 1))
        made.update(stream.read(SAMPLE))
    return made.hexdigest()


def _in_threads(hashed: Callable[[Path], str], paths: Iterable[Path]) -> dict[Path, str]:
    wanted = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
        return dict(zip(wanted, pool.map(hashed, wanted), strict=True))
