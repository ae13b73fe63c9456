"""Encode the values of a sample as a JSON structure and a list of tensors, which the structure refers to by number.

Images are stored as (H, W, 3) uint8, without loss. No other Python objects are stored (no pickle).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dsctl_core.errors import DsctlError

PLAIN = (bool, int, float, str)


def encode(value: Any, tensors: list[Tensor], dtype: torch.dtype | None = None) -> Any:
    """Return the structure of `value` and append its tensors to `tensors`.

    Floating-point tensors are stored in `dtype` if that is smaller than their own dtype; `decode` returns them in their
    own. Raises `DsctlError` for a type that cannot be stored.
    """
    if value is None or isinstance(value, PLAIN):
        return value
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        if dtype is not None and tensor.is_floating_point() and dtype.itemsize < tensor.dtype.itemsize:
            tensors.append(tensor.to(dtype).contiguous())
        else:
            tensors.append(tensor.contiguous().clone())
        return {"tensor": len(tensors) - 1, "dtype": str(tensor.dtype).removeprefix("torch.")}
    if isinstance(value, Image.Image):
        tensors.append(torch.from_numpy(np.array(value.convert("RGB"))))
        return {"picture": len(tensors) - 1}
    if isinstance(value, list):
        return {"list": [encode(entry, tensors, dtype) for entry in value]}
    if isinstance(value, tuple):
        return {"tuple": [encode(entry, tensors, dtype) for entry in value]}
    if isinstance(value, dict):
        return {"dict": {str(key): encode(entry, tensors, dtype) for key, entry in value.items()}}
    if isinstance(value, torch.device | torch.dtype):
        return {type(value).__name__: str(value).removeprefix("torch.")}
    raise DsctlError(f"a {type(value).__name__} cannot be stored in a cache", hint="train without a cache: --no-cache")


def decode(structure: Any, tensors: Any) -> Any:
    """Return the value of a structure: the inverse of `encode`. `tensors` is a function from number to tensor."""
    if not isinstance(structure, dict):
        return structure
    ((kind, content), *rest) = structure.items()
    if kind == "tensor":
        return tensors(content).to(getattr(torch, rest[0][1]))
    if kind == "picture":
        return Image.fromarray(tensors(content).numpy())
    if kind == "list":
        return [decode(entry, tensors) for entry in content]
    if kind == "tuple":
        return tuple(decode(entry, tensors) for entry in content)
    if kind == "dict":
        return {key: decode(entry, tensors) for key, entry in content.items()}
    return torch.device(content) if kind == "device" else getattr(torch, content)


def tensors_of(structure: Any) -> list[int]:
    """Return the numbers of the tensors in a structure."""
    if not isinstance(structure, dict):
        return []
    kind, content = next(iter(structure.items()))
    if kind in ("tensor", "picture"):
        return [content]
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return [number for entry in inner for number in tensors_of(entry)]


def is_plain(value: Any) -> bool:
    """Return whether `value` is stored without tensors."""
    if isinstance(value, list | tuple):
        return all(is_plain(entry) for entry in value)
    if isinstance(value, dict):
        return all(is_plain(entry) for entry in value.values())
    return not isinstance(value, Tensor | Image.Image)
