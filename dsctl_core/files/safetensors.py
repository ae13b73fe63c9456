"""Read and write safetensors files: the header is checked against the size of the file before it is trusted."""

from __future__ import annotations

import errno
import functools
import math
import re
import struct
import time
from collections.abc import Mapping
from os import stat_result
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import atomic_path
from dsctl_core.files.foreign import refuse_foreign
from dsctl_core.files.json import JsonFault, checked, decode_json, kind_of

if TYPE_CHECKING:
    from torch import Tensor

AGAIN = "download or copy it again"
METADATA = "__metadata__"  # the entry of a header that is no tensor
MOST_HEADER = 100_000_000  # bytes; the format's own limit
SETTLED = 2.0  # seconds since a file was last changed, after which another change shows in its times
KEPT_HEADERS = 64  # a model has its weights in fewer files
# The bits of an element of each dtype (https://github.com/huggingface/safetensors).
BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8}
BITS |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32}
BITS |= {"F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64}
Size = Annotated[int, Field(ge=0)]


class TensorEntry(TypedDict):
    """One tensor in a header; its offsets count from the end of the header."""

    dtype: str
    shape: list[Size]
    data_offsets: Annotated[list[Size], Field(min_length=2, max_length=2)]


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write `tensors` with `metadata` in the header, atomically; keys in sorted order, tensors made contiguous."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    ready = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    with atomic_path(path, in_folder=True) as temporary:  # save_file writes to a file .tmpXXXXXX beside it
        try:
            save_file(ready, temporary, metadata={"format": "pt", **metadata})
        except SafetensorError as error:
            # safetensors wraps the operating system's error in its own; the number is left in its text.
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error


def safetensors_header(path: Path) -> tuple[Mapping[str, Any], int]:
    """Return the header of a whole safetensors file, and where its tensors begin.

    The header maps the name of each tensor to its "dtype", "shape" and "data_offsets", and "__metadata__" to texts.
    The header of a file that has not changed since is not read again: loading a component asks for it several times.

    Raises a DsctlError that names the file, and the tensor: for another format, for a header that is none, for tensors
    of another size than their dtype and shape, that overlap or leave a gap, and for more or fewer bytes than announced.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        raise _unreadable(path, error) from error
    state = settled_state(status)
    return _read_header(path, status.st_size) if state is None else _read_once(path, *state)


def tensor_entries(path: Path) -> dict[str, Any]:
    """Return what the header of a whole safetensors file says of each tensor, by name; see `safetensors_header`."""
    return tensors_of(safetensors_header(path)[0])


def file_metadata(path: Path) -> Mapping[str, str]:
    """Return the metadata in the header of a whole safetensors file, {} for none; see `safetensors_header`."""
    found: Mapping[str, str] = safetensors_header(path)[0].get(METADATA, {})
    return found


def tensors_of(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a `header` says of each tensor, by name."""
    return {name: entry for name, entry in header.items() if name != METADATA}


def settled_state(status: stat_result) -> tuple[int, ...] | None:
    """Return what of a file changes with its content, its size first; None for one that has just been changed."""
    if time.time() - max(status.st_mtime, status.st_ctime) < SETTLED:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev


@functools.lru_cache(KEPT_HEADERS)
def _read_once(path: Path, size: int, *state: int) -> tuple[Mapping[str, Any], int]:
    """Read the header of a file of `size` bytes, which `state` tells from others that were at `path` before."""
    return _read_header(path, size)


def _unreadable(path: Path, error: OSError | ValueError) -> DsctlError:
    reason = getattr(error, "strerror", None) or error
    return DsctlError(f"{path} cannot be read: {reason}", hint="check the path")


def _read_header(path: Path, size: int) -> tuple[Mapping[str, Any], int]:
    try:
        refuse_foreign(path)
        with path.open("rb") as stream:
            length = header_length(stream.read(8), size, path)
            text = stream.read(length)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return _checked(path, text, size), 8 + length


def header_in(head: bytes, size: int, where: str) -> Mapping[str, Any]:
    """Return the header that the first bytes of a file of `size` bytes at `where` are; raise as `safetensors_header`.

    `head` goes to the end of the header at least.
    """
    length = header_length(head, size, where)
    return _checked(where, head[8 : 8 + length], size)


def header_length(head: bytes, size: int, where: Path | str) -> int:
    """Return the bytes of the header alone, from the first eight of a file of `size` bytes."""
    if len(head) < 8:
        raise DsctlError(f"{where} is cut off: {size} bytes", hint=AGAIN)
    (length,) = struct.unpack("<Q", head[:8])
    if length > MOST_HEADER or length + 8 > size:
        raise DsctlError(f"{where} is no safetensors file, or is cut off", hint=AGAIN)
    return int(length)


def _checked(path: Path | str, text: bytes, size: int) -> dict[str, Any]:
    """Return the header of a file of `size` bytes whose header is `text`."""
    header = _checked_header(path, text)
    end = 8 + len(text) + _checked_places(path, header)
    if size != end:
        raise DsctlError(f"{path} is damaged: {size} bytes, but its header announces {end}", hint=AGAIN)
    return header


def _checked_header(path: Path | str, text: bytes) -> dict[str, Any]:
    """Return the header if it has the structure that the format defines."""
    try:
        header = decode_json(text)
    except JsonFault as fault:
        raise DsctlError(f"{path} is damaged: in its header, {fault}", hint=AGAIN) from fault
    except ValueError as error:
        raise DsctlError(f"{path} is no safetensors file: its header is not JSON", hint="check the path") from error
    if not isinstance(header, dict):
        raise DsctlError(f"{path} is no safetensors file: its header is {kind_of(header)}", hint="check the path")
    where = f"{path} is damaged: in its header"
    checked(header.get(METADATA, {}), dict[str, str], f"{where}, {METADATA}", hint=AGAIN)
    checked(tensors_of(header), dict[str, TensorEntry], where, hint=AGAIN)
    return header


def _checked_places(path: Path | str, header: dict[str, Any]) -> int:
    """Return the number of bytes of all tensors, after checking that they follow one another without a gap."""
    end = 0
    for name, entry in sorted(tensors_of(header).items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        if entry["dtype"] not in BITS:
            raise DsctlError(
                f"{path}: {name} has the dtype {entry['dtype']!r}, which is unknown",
                hint=f"the dtypes of safetensors are {', '.join(BITS)}; give another version of the file",
            )
        bits = math.prod(entry["shape"]) * BITS[entry["dtype"]]
        if bits != 8 * (last - first):
            shape = f"{entry['dtype']} of shape {tuple(entry['shape'])}"
            raise DsctlError(f"{path} is damaged: {name} is {shape}, but has {last - first} bytes", hint=AGAIN)
        if first != end:
            how = "overlaps the tensor before it" if first < end else "leaves a gap behind the tensor before it"
            raise DsctlError(f"{path} is damaged: {name} begins at byte {first}, which {how}", hint=AGAIN)
        end = last
    return end


def check_safetensors(path: Path) -> None:
    """Raise a DsctlError unless `path` is a whole safetensors file: right header, and as many bytes as it announces."""
    safetensors_header(path)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the header's metadata of a checked safetensors file."""
    from safetensors import SafetensorError, safe_open

    check_safetensors(path)
    try:
        with safe_open(path, framework="pt") as opened:
            names = opened.keys()
            return {name: opened.get_tensor(name) for name in names}, dict(opened.metadata() or {})
    except (SafetensorError, AttributeError, KeyError) as error:  # a dtype that this torch does not have
        raise DsctlError(
            f"{path} has tensors that cannot be read: {error}", hint="give another version of the file"
        ) from error
