"""Read single parts of shards: what one costs depends neither on the other parts of its shard nor on their number.

A header is not parsed as a whole. The JSON of a part begins behind its key, which is found as text: keys are hashes,
and within the texts of a header every quote has a backslash before it.
"""

from __future__ import annotations

import json
import os
import struct
from collections import OrderedDict
from io import BufferedReader, BytesIO, RawIOBase
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsctl_core.cache.shards import HEADER_KEY
from dsctl_core.errors import DsctlError
from dsctl_core.files.json import checked
from dsctl_core.files.safetensors import MOST_HEADER, TensorEntry

MOST_OPEN = 64  # shards that are open at the same time
REBUILD = "rebuild the cache"
DECODER = json.JSONDecoder()
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}


class Shard:
    """An open shard. Raises `DsctlError` where its header is not that of a shard.

    It is read from `source`, else from the file at `path`. A source that ends with the header has no tensors to read.
    """

    def __init__(self, path: Path, source: BytesIO | RawIOBase | None = None) -> None:
        self.path = path
        try:
            self._file: BufferedReader | BytesIO | RawIOBase = path.open("rb") if source is None else source
            (length,) = struct.unpack("<Q", self._file.read(8) or b"")
            if length > MOST_HEADER:
                raise ValueError("the header is too long")
            self._header = (self._file.read(length) or b"").decode()
            self._data = 8 + length
            mark = f'"{HEADER_KEY}":'
            self._structures = str(DECODER.raw_decode(self._header, self._header.index(mark) + len(mark))[0])
        except (OSError, ValueError, struct.error) as error:
            raise DsctlError(f"{path} is not a shard of a cache", hint=REBUILD) from error

    def structure(self, key: str) -> dict[str, Any]:
        """Return the structures of the values of a part by name; raise KeyError if the shard has no such part."""
        found = _value_behind(self._structures, f'"{key}":')
        return checked(found, dict[str, Any], f"the {HEADER_KEY} of {self.path}", hint=REBUILD)

    def entry(self, name: str) -> TensorEntry:
        """Return the dtype, the shape and the place of a tensor; raise KeyError if the shard has none of the name."""
        found = _value_behind(self._header, f'"{name}":')
        return checked(found, TensorEntry, f"{self.path}: {name}", hint=REBUILD)

    def place(self, name: str) -> tuple[int, int]:
        """Return where the bytes of a tensor begin and end in the file."""
        begin, end = self.entry(name)["data_offsets"]
        return self._data + begin, self._data + end

    def tensor(self, name: str) -> Tensor:
        """Read a tensor."""
        entry = self.entry(name)
        begin, end = entry["data_offsets"]
        dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
        if prod(shape) * dtype.itemsize != end - begin:
            raise ValueError(f"{name} has {end - begin} bytes")
        if begin == end:
            return torch.empty(shape, dtype=dtype)
        content = bytearray(end - begin)
        self._file.seek(self._data + begin)
        if self._file.readinto(content) != len(content):
            raise ValueError(f"{name} is cut off")
        return torch.frombuffer(content, dtype=dtype).reshape(shape)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


class OpenShards:
    """The shards of a folder, of which the last `MOST_OPEN` that were asked for are open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process = os.getpid()
        self._open: OrderedDict[str, Shard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out open files, which cannot be sent to a worker process."""
        return {"folder": self.folder, "_process": 0, "_open": OrderedDict()}

    def __getitem__(self, name: str) -> Shard:
        if self._process != os.getpid():  # a file that was open before a fork has one place for both processes
            self._process = os.getpid()
            self._open.clear()
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        while len(self._open) >= MOST_OPEN:
            self._open.popitem(last=False)[1].close()
        self._open[name] = Shard(self.folder / name)
        return self._open[name]

    def head(self, name: str) -> Shard:
        """Return a shard, for the shapes of its tensors."""
        return self[name]


def _value_behind(text: str, mark: str) -> Any:
    """Return the JSON value behind `mark`, which follows the beginning of an object or a comma."""
    place = text.find(mark)
    while place >= 0 and text[place - 1 : place] not in ("{", ","):
        place = text.find(mark, place + 1)
    if place < 0:
        raise KeyError(mark)
    return DECODER.raw_decode(text, place + len(mark))[0]
