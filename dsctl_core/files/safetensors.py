"""Read and write safetensors files: the header is checked against the size of the file before it is trusted."""

from __future__ import annotations

import errno
import json
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write `tensors` with `metadata` in the header, atomically; keys in sorted order, tensors made contiguous."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    ready = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    with atomic_path(path) as temporary:
        try:
            save_file(ready, temporary, metadata={"format": "pt", **metadata})
        except SafetensorError as error:
            # safetensors wraps the operating system's error in its own; the number is left in its text.
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error


def safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a whole safetensors file, and where its tensors begin.

    Raises a DsctlError for a pickle, for a header that is none, and for more or fewer bytes than it announces.
    """
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise DsctlError(
            f"{path} is a pickle, which can run code when it is opened",
            hint="convert it to safetensors, or ask its author for a .safetensors file",
        )
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length_bytes = stream.read(8)
            if len(length_bytes) < 8:
                raise DsctlError(f"{path} is cut off: {size} bytes", hint="download or copy the file again")
            (length,) = struct.unpack("<Q", length_bytes)
            if length > 100_000_000 or length + 8 > size:
                raise DsctlError(f"{path} is no safetensors file, or is cut off", hint="download or copy it again")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise DsctlError(f"{path} cannot be read: {error.strerror or error}", hint="check the path") from error
    except ValueError as error:
        raise DsctlError(f"{path} is no safetensors file: its header is not JSON", hint="check the path") from error
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    expected = 8 + length + max((entry["data_offsets"][1] for entry in tensors), default=0)
    if size != expected:
        raise DsctlError(
            f"{path} is damaged: {size} bytes, but its header announces {expected}", hint="download or copy it again"
        )
    return header, 8 + length


def check_safetensors(path: Path) -> None:
    """Raise a DsctlError unless `path` is a whole safetensors file: right header, and as many bytes as it announces."""
    safetensors_header(path)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the header's metadata of a checked safetensors file."""
    from safetensors import safe_open

    check_safetensors(path)
    with safe_open(path, framework="pt") as opened:
        names = opened.keys()
        return {name: opened.get_tensor(name) for name in names}, dict(opened.metadata() or {})
