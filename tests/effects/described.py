"""Describes what a command hands to the code that does the work, as plain values that can be compared."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from dsctl_core.checkpoint.readers import Readers
from dsctl_core.options import Options
from dsctl_core.progress import NoProgress

DEPTH = 12
# What only repeats the options for people to read later, and what changes from run to run.
ECHOES = {"run", "config", "identity", "shell", "accelerator", "progress", "metadata_path"}


def described(value: Any, depth: int = 0, seen: dict[int, Any] | None = None) -> Any:
    """Return `value` as plain values: tensors and images as digests, objects as the values of their attributes.

    Option models are left out: that an option is carried along is no effect.
    """
    seen = {} if seen is None else seen
    if isinstance(value, bool | int | float | str | bytes | type(None)):
        return value
    if isinstance(value, Path | torch.dtype | torch.device):
        return str(value)
    if isinstance(value, Options | NoProgress) or depth > DEPTH:
        return type(value).__name__
    if isinstance(value, Tensor):
        return tensor_digest(value)
    if isinstance(value, Image):
        return [value.size, hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, type | types.FunctionType | types.MethodType | types.BuiltinFunctionType):
        return value.__qualname__
    if id(value) in seen:
        return f"{type(value).__name__} above"
    seen[id(value)] = value  # kept, so that no other object gets its id

    def inside(each: Any) -> Any:
        return described(each, depth + 1, seen)

    if isinstance(value, Mapping):
        return {str(name): inside(each) for name, each in value.items() if name not in ECHOES}
    if isinstance(value, list | tuple | range):
        return [inside(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(str(inside(each)) for each in value)
    if isinstance(value, functools.partial):
        return [inside(value.func), inside(value.args), inside(value.keywords)]
    if isinstance(value, Readers):
        return inside(value.folders)
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__name__, inside({field.name: getattr(value, field.name) for field in fields(value)})]
    own = {name: each for name, each in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
    if isinstance(value, nn.Module):
        own["state"] = {name: tensor_digest(each) for name, each in value.state_dict().items()}
    return [type(value).__name__, inside(own)]


def tensor_digest(tensor: Tensor) -> str:
    """Return the shape, the dtype and a digest of the bytes of a tensor."""
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return f"{tuple(tensor.shape)} {tensor.dtype} {hashlib.sha256(content).hexdigest()}"
