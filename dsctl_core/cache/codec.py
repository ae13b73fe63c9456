"""Values of a sample at rest: a structure of plain JSON, and the tensors that it points to by number.

Pictures become (H, W, 3) uint8, so that they come back to the bit. Nothing else is stored, least of all objects.
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

    Floating-point tensors are held in `dtype` where that is smaller than their own, and come back in their own.
    """
    if value is None or isinstance(value, PLAIN):
        return value
    if isinstance(value, Tensor):
        own = value.detach().cpu()
        if dtype is not None and own.is_floating_point() and dtype.itemsize < own.dtype.itemsize:
            tensors.append(own.to(dtype).contiguous())
        else:
            tensors.append(own.contiguous().clone())
        return {"tensor": len(tensors) - 1, "dtype": str(own.dtype).removeprefix("torch.")}
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
    raise DsctlError(
        f"a {type(value).__name__} cannot be kept in a cache", hint="train without one: --no-cache, and no dsctl cache"
    )


def decode(structure: Any, tensors: Any) -> Any:
    """Undo `encode`; `tensors` returns a tensor by its number."""
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
    """Return the numbers of the tensors that a structure points to."""
    if not isinstance(structure, dict):
        return []
    kind, content = next(iter(structure.items()))
    if kind in ("tensor", "picture"):
        return [content]
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return [number for entry in inner for number in tensors_of(entry)]


def is_plain(value: Any) -> bool:
    """Return whether `value` is kept without any tensor."""
    if isinstance(value, list | tuple):
        return all(is_plain(entry) for entry in value)
    if isinstance(value, dict):
        return all(is_plain(entry) for entry in value.values())
    return not isinstance(value, Tensor | Image.Image)
