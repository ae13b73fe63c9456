"""Write nested values, such as an optimizer's state, as one safetensors file, with all but tensors in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsctl_core.errors import DsctlError
from dsctl_core.files.json import decode_json
from dsctl_core.files.safetensors import read_safetensors, write_safetensors

STRUCTURE = "structure"
PLAIN = (bool, int, float, str)


@dataclass(frozen=True)
class Piece:
    """Stands for a tensor that is written in pieces, elsewhere, under `name`."""

    name: str


def write_values(path: Path, value: Any) -> None:
    """Write `value`: dicts (with str or int keys), lists, tuples, tensors, numbers, strings, None and Pieces."""
    tensors: dict[str, Tensor] = {}
    structure = _packed(value, tensors, "")
    write_safetensors(path, _apart(tensors), {STRUCTURE: json.dumps(structure)})


def read_values(path: Path, pieces: Mapping[str, Tensor] | None = None) -> Any:
    """Return the values of `write_values` on the CPU: every tensor in its dtype, every number to the bit.

    `pieces` are the tensors that are in place of Pieces, by name.
    """
    tensors, about = read_safetensors(path)
    try:
        return _unpacked(decode_json(about[STRUCTURE], finite=False), tensors, pieces or {})
    except (LookupError, ValueError, TypeError) as error:
        raise DsctlError(f"{path} is no file of a training state: {error}", hint="resume from another state") from error


def tensor_bytes(value: Any) -> int:
    """Return the size of the tensors in `value` in bytes."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(tensor_bytes(each) for each in inner)


def _packed(value: Any, tensors: dict[str, Tensor], place: str) -> Any:
    """Return `value` as JSON, and store its tensors in `tensors` under the path `place` within the whole."""
    if value is None or isinstance(value, PLAIN):
        return value
    if isinstance(value, Tensor):
        name = f"{len(tensors):06d}{place}"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Piece):
        return {"piece": value.name}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_packed(each, tensors, f"{place}.{number}") for number, each in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(key, str | int) for key in value):
        return {"dict": [[key, _packed(each, tensors, f"{place}.{key}")] for key, each in value.items()]}
    raise DsctlError(
        f"the training state has a {type(value).__name__} at {place.removeprefix('.')}, which cannot be written",
        hint="keep it as tensors, numbers, texts, lists and dicts of them",
    )


def _unpacked(structure: Any, tensors: Mapping[str, Tensor], pieces: Mapping[str, Tensor]) -> Any:
    if not isinstance(structure, dict):
        return structure
    ((kind, content),) = structure.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "piece":
        return pieces[content]
    if kind == "dict":
        return {key: _unpacked(each, tensors, pieces) for key, each in content}
    values = [_unpacked(each, tensors, pieces) for each in content]
    return {"tuple": tuple, "list": list}[kind](values)


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that share no memory, as safetensors requires: views are copied."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        storage = own.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != own.numel() * own.element_size():
            own = own.clone(memory_format=torch.contiguous_format)
        seen.add(own.untyped_storage().data_ptr())
        result[name] = own
    return result
