"""Read and write shards: safetensors files with a few dozen parts, named by the hash of their bytes.

A part has the outputs of one group of units for one input, under names like "shared.NAME" and "posi.NAME". Its key is
a hash of everything that determines them. The header of a shard has the keys of its parts and the structures of their
values, so an interrupted cache can be continued from its shards alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
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
from dsctl_core.files.foreign import is_pickle
from dsctl_core.files.json import checked, parse_json
from dsctl_core.files.safetensors import METADATA, check_safetensors, tensor_entries, tensors_of

FOLDER, SUFFIX = "shards", ".safetensors"
PARTS_IN_A_SHARD, MOST_PARTS_IN_A_SHARD = 64, 256  # all parts of a shard are in memory when it is written
MOST_SHARDS = 2**12  # of one group of units, unless the shards have all the parts that they may have
HEADER_KEY = "dsctl_cache"  # a single key, because the order in which safetensors writes several is not fixed


@dataclass(frozen=True)
class Part:
    """The encoded values of one part: their JSON structures by name, and their tensors."""

    structure: dict[str, Any]
    tensors: tuple[Tensor, ...]


def make_part(values: Mapping[str, Any], dtype: torch.dtype) -> Part:
    """Return the part of `values`; floating-point tensors are stored in `dtype` if it is smaller than their own."""
    tensors: list[Tensor] = []
    structure = {name: encode(value, tensors, dtype) for name, value in sorted(values.items())}
    return Part(structure, tuple(tensors))


def packed(parts: Mapping[str, Part]) -> tuple[str, bytes]:
    """Return the name and the bytes of the shard of `parts` (by key)."""
    from safetensors.torch import save

    tensors = {f"{key}/{n}": tensor for key, part in parts.items() for n, tensor in enumerate(part.tensors)}
    header = json.dumps({key: parts[key].structure for key in sorted(parts)}, separators=(",", ":"))
    content = save(tensors, {HEADER_KEY: header})
    return f"{hashlib.sha256(content).hexdigest()}{SUFFIX}", content


def write_shard(cache: Path, parts: Mapping[str, Part]) -> Path:
    """Write `parts` (by key) atomically as one shard of the folder `cache`, and return its path."""
    name, content = packed(parts)
    path = cache / FOLDER / name
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def read_parts(path: Path, keys: Collection[str]) -> dict[str, Part]:
    """Return the parts `keys` of a shard."""
    from safetensors import safe_open

    by_key, parts = structures(path), {}
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        for key in keys:
            tensor_names = sorted(
                (name for name in names if name.startswith(f"{key}/")), key=lambda name: int(name[len(key) + 1 :])
            )
            parts[key] = Part(by_key[key], tuple(file.get_tensor(name).clone() for name in tensor_names))
    return parts


def structures(path: Path) -> dict[str, dict[str, Any]]:
    """Return the structures in the header of a shard, by key of the part and name of the value."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {})[HEADER_KEY]
    except (SafetensorError, OSError, KeyError) as error:
        raise DsctlError(f"{path} is not a shard of a cache", hint="rebuild the cache") from error
    return _structures(text, path)


def parts_in(header: Mapping[str, Any], where: str) -> dict[str, int]:
    """Return the bytes of the tensors of each part, by key, of the header of the shard at `where`."""
    text = header.get(METADATA, {}).get(HEADER_KEY)
    if text is None:
        raise DsctlError(f"{where} is not a shard of a cache", hint="rebuild the cache")
    return {**dict.fromkeys(_structures(text, where), 0), **_bytes_by_key(tensors_of(header))}


def _structures(text: str, where: Path | str) -> dict[str, dict[str, Any]]:
    found = parse_json(text, f"the {HEADER_KEY} of {where}", finite=False, hint="rebuild the cache")
    return checked(found, dict[str, dict[str, Any]], f"the {HEADER_KEY} of {where}", hint="rebuild the cache")


def tensor_bytes(path: Path) -> dict[str, int]:
    """Return the number of bytes of the tensors of each part in a shard."""
    return _bytes_by_key(tensor_entries(path))


def _bytes_by_key(tensors: Mapping[str, Any]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, entry in tensors.items():
        start, end = entry["data_offsets"]
        key = name.partition("/")[0]
        sizes[key] = sizes.get(key, 0) + end - start
    return sizes


def examine(path: Path) -> None:
    """Raise `DsctlError` if a shard is missing, incomplete, a pickle, or not equal to its checksum."""
    if not path.is_file():
        raise DsctlError(f"{path} is missing", hint="copy it back, or run the `dsctl cache` command again")
    if is_pickle(path):
        raise DsctlError(
            f"{path} is a pickle, which can run code when it is opened; a cache has no pickles",
            hint="do not open it; rebuild the cache from your own data",
        )
    check_safetensors(path)
    if digest_file(path) != path.stem:
        raise DsctlError(
            f"{path} is damaged: its content does not have the checksum in its name",
            hint="run the `dsctl cache` command again: it encodes damaged entries again",
        )


def examine_all(paths: Iterable[Path]) -> Iterator[tuple[Path, DsctlError | None]]:
    """Examine shards in parallel; yield each path with its error or None, in the order of `paths`."""

    def outcome(path: Path) -> DsctlError | None:
        try:
            examine(path)
        except DsctlError as error:
            return error
        return None

    shards = list(paths)
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
        yield from zip(shards, pool.map(outcome, shards), strict=True)


def shard_files(cache: Path) -> list[Path]:
    """Return the shards of a cache folder, sorted."""
    return sorted((cache / FOLDER).glob(f"*{SUFFIX}"))
