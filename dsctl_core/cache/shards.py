"""Shards: safetensors files named by the hash of their bytes, each with a few dozen parts.

A part is what one group of units made of one input: values under "shared.NAME" or "posi.NAME". Its key says what it was
made of. The header of a shard says which parts it has and how their values are put together, so a folder of shards
needs nothing else to be continued from.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsctl_core.cache.codec import encode
from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import atomic_path
from dsctl_core.files.digest import digest_file
from dsctl_core.files.safetensors import check_safetensors

FOLDER, SUFFIX = "shards", ".safetensors"
PARTS_IN_A_SHARD = 64
HEADER_KEY = "dsctl_cache"  # one key alone, because safetensors writes several in any order
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class Part:
    """The values of one part, ready to be written."""

    structure: dict[str, Any]
    tensors: tuple[Tensor, ...]


def make_part(values: Mapping[str, Any], dtype: torch.dtype) -> Part:
    """Return the part that holds `values`, floats in `dtype` where that is smaller than their own."""
    tensors: list[Tensor] = []
    structure = {name: encode(value, tensors, dtype) for name, value in sorted(values.items())}
    return Part(structure, tuple(tensors))


def write_shard(cache: Path, parts: Mapping[str, Part]) -> Path:
    """Write `parts`, by key, as one shard of the cache folder `cache` and return its path."""
    from safetensors.torch import save

    tensors = {f"{key}/{n}": tensor for key, part in parts.items() for n, tensor in enumerate(part.tensors)}
    header = json.dumps({key: parts[key].structure for key in sorted(parts)}, separators=(",", ":"))
    content = save(tensors, {HEADER_KEY: header})
    path = cache / FOLDER / f"{hashlib.sha256(content).hexdigest()}{SUFFIX}"
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def structures(path: Path) -> dict[str, dict[str, Any]]:
    """Return the structures of a shard's parts by key, from its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            return json.loads((opened.metadata() or {})[HEADER_KEY])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DsctlError(f"{path} is no shard of a cache", hint="make the cache again") from error


def tensor_bytes(path: Path) -> dict[str, int]:
    """Return how many bytes the tensors of each part in a shard take."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    sizes: dict[str, int] = {}
    for name, about in header.items():
        if name != "__metadata__":
            start, end = about["data_offsets"]
            key = name.partition("/")[0]
            sizes[key] = sizes.get(key, 0) + end - start
    return sizes


def examine(path: Path) -> None:
    """Raise a DsctlError naming `path` unless it is there, whole, no pickle, and has the bytes it was written with."""
    if not path.is_file():
        raise DsctlError(f"{path} is missing", hint="copy it back, or run the `dsctl cache` command again")
    with path.open("rb") as stream:
        head = stream.read(9)
    # A safetensors file begins with the length of its header, whose first bytes can be those of a pickle.
    if head.startswith(PICKLES) and head[4:] != bytes(4) + b"{":
        raise DsctlError(
            f"{path} is a pickle, which can run code when it is opened; a cache has none",
            hint="do not open it; make the cache again from your own data",
        )
    check_safetensors(path)
    if digest_file(path) != path.stem:
        raise DsctlError(
            f"{path} is damaged: its bytes are not those that were written",
            hint="run the `dsctl cache` command again: it makes anew what is damaged",
        )


def examine_all(paths: Iterable[Path]) -> Iterator[tuple[Path, DsctlError | None]]:
    """Examine several shards at a time; yield each with what is wrong with it, in the order given."""

    def outcome(path: Path) -> DsctlError | None:
        try:
            examine(path)
        except DsctlError as error:
            return error
        return None

    wanted = list(paths)
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
        yield from zip(wanted, pool.map(outcome, wanted), strict=True)


def shard_files(cache: Path) -> list[Path]:
    """Return the shards of a cache folder, sorted."""
    return sorted((cache / FOLDER).glob(f"*{SUFFIX}"))
