"""Files that are whole or absent: atomic writes, and safetensors that are checked before they are trusted."""

from __future__ import annotations

import errno
import json
import os
import re
import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.errors import DsctlError

if TYPE_CHECKING:
    from torch import Tensor

PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it there when the block succeeds, remove it when it fails.

    The data reaches the disk (fsync) before the rename, so that after a crash `path` is the old file or the new one.
    A full disk or a missing permission is a DsctlError that names `path`.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        try:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable, where the system has a way to."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(path: Path, error: OSError) -> DsctlError:
    """Say in one line why `path` could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DsctlError(f"{path} could not be written: no space left", hint="free some disk space, then run it again")
    reason = error.strerror or str(error)
    return DsctlError(f"{path} could not be written: {reason}", hint="give a path that this user can write to")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


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


def prepare_folder(folder: Path) -> None:
    """Make `folder` and prove that files can be written there, before anything long starts."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{uuid.uuid4().hex[:8]}"
        try:
            probe.write_bytes(b"dsctl")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error


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
