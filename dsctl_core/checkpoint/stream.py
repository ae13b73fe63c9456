"""Change tensors of a safetensors file as a stream, without holding the file or a whole tensor in memory."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dsctl_core.checkpoint.finite import refuse_not_finite
from dsctl_core.checkpoint.quantized import refuse_quantized
from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import atomic_path
from dsctl_core.files.safetensors import safetensors_header, tensor_entries, tensors_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
BLOCK = 1 << 22  # number of elements that are changed at once: 16 MB in float32
CHUNK = 1 << 24  # number of bytes that are copied at once

# (rows of a tensor in float32, (rows, columns); index of the first row) -> changed rows
ChangeRows = Callable[["Tensor", int], "Tensor"]


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a safetensors file, by name."""
    return {name: tuple(entry["shape"]) for name, entry in tensor_entries(path).items()}


def rewrite(source: Path, target: Path, changes: Mapping[str, ChangeRows], tick: Callable[[str], None]) -> None:
    """Write `source` to `target` atomically, with each tensor in `changes` changed by its function.

    Names, shapes, dtypes and order, and so the header, are unchanged. Changes are computed in float32, some rows at a
    time. `tick` is called with the name of each tensor when it is done.
    """
    header, begin = safetensors_header(source)
    if changes:  # what is copied may stay in few bits
        refuse_quantized(source, header)
    entries = sorted(tensors_of(header).items(), key=lambda item: item[1]["data_offsets"][0])
    with atomic_path(target) as temporary, source.open("rb") as reader, temporary.open("wb") as writer:
        _copy(reader, writer, begin)
        for name, entry in entries:
            first, last = entry["data_offsets"]
            reader.seek(begin + first)
            writer.seek(begin + first)
            if name in changes:
                _change(source, name, entry, reader, writer, changes[name])
            else:
                _copy_tensor(source, name, entry, reader, writer)
            tick(name)
    shutil.copymode(source, target)


def _copy(reader: IO[bytes], writer: IO[bytes], count: int) -> None:
    while count > 0:
        data = reader.read(min(count, CHUNK))
        if not data:
            raise DsctlError(f"{reader.name} ended early", hint="download or copy it again")
        writer.write(data)
        count -= len(data)


def _copy_tensor(source: Path, name: str, entry: dict[str, Any], reader: IO[bytes], writer: IO[bytes]) -> None:
    """Copy the tensor at the position of `reader`; raise DsctlError for a value that is not finite."""
    import torch

    first, last = entry["data_offsets"]
    dtype = getattr(torch, DTYPES[entry["dtype"]]) if entry["dtype"] in DTYPES else None
    for position in range(first, last, CHUNK):
        data = bytearray(reader.read(min(CHUNK, last - position)))
        if not data:
            raise DsctlError(f"{reader.name} ended early", hint="download or copy it again")
        if dtype is not None:
            refuse_not_finite([(name, torch.frombuffer(data, dtype=dtype))], source)
        writer.write(data)


def _change(
    source: Path, name: str, entry: dict[str, Any], reader: IO[bytes], writer: IO[bytes], change: ChangeRows
) -> None:
    for row, block in row_blocks(source, name, entry, reader):
        changed = change(block.float(), row).to(block.dtype)
        refuse_not_finite([(name, changed)], source)
        writer.write(_bytes(changed))


def row_blocks(source: Path, name: str, entry: dict[str, Any], reader: IO[bytes]) -> Iterator[tuple[int, Tensor]]:
    """Yield (index of the first row, rows) of the tensor at the position of `reader`, in the dtype of the file.

    A tensor (R, ...) that is no matrix is one of R rows.
    """
    import torch

    dtype = dtype_of(source, name, entry)
    shape = entry["shape"] or [1]
    rows, columns = shape[0], math.prod(shape[1:])
    step = max(1, BLOCK // max(columns, 1))
    for row in range(0, rows, step):
        count = min(step, rows - row)
        data = bytearray(reader.read(count * columns * dtype.itemsize))
        yield row, torch.frombuffer(data, dtype=dtype).view(count, columns)


def dtype_of(source: Path, name: str, entry: dict[str, Any]) -> torch.dtype:
    """Return the dtype of a tensor; raise DsctlError if it is not a floating-point dtype."""
    import torch

    if entry["dtype"] not in DTYPES:
        raise DsctlError(
            f"{source}: {name} is {entry['dtype']}, which nothing can be added to",
            hint="use a version of the model that is not quantized",
        )
    return getattr(torch, DTYPES[entry["dtype"]])


def _bytes(tensor: Tensor) -> bytes:
    import torch

    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def read_tensor(path: Path, name: str) -> Tensor:
    """Return one tensor of a safetensors file, without mapping the file into memory; all its values are finite."""
    import torch

    header, begin = safetensors_header(path)
    entry = header[name]
    dtype = dtype_of(path, name, entry)
    first, last = entry["data_offsets"]
    with path.open("rb") as reader:
        reader.seek(begin + first)
        data = bytearray(reader.read(last - first))
    if not data:
        return torch.empty(entry["shape"], dtype=dtype)
    tensor = torch.frombuffer(data, dtype=dtype).view(entry["shape"])
    refuse_not_finite([(name, tensor)], path)
    return tensor
