"""Determine the dtype of each weight of a model: some parts stay in float32 whatever the dtype of the others.

They are declared by the class (`_keep_in_fp32_modules` of diffusers and transformers) and by the family
(`Component.float32_parts`), as names of modules or parameters. A weight belongs to such a part if one component of its
dotted name is in the list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def float32_parts(model: nn.Module, declared: Sequence[str] = (), dtype: torch.dtype | None = None) -> frozenset[str]:
    """Return the names of the parts of `model` that stay in float32; `declared` are those of its family.

    With `dtype`, they are those that stay so where the others are in `dtype`, as transformers loads them: beside
    bfloat16 these are fewer than beside float16. Classes of diffusers have the same ones in each.
    """
    strict: Any = getattr(model, "_keep_in_fp32_modules_strict", None)  # None for diffusers
    own: Any = getattr(model, "_keep_in_fp32_modules", None)
    if strict is not None and dtype not in (None, torch.float16):
        own = strict
    kept: Any = getattr(model, FLOAT32_PARTS, ())
    return frozenset((*(own or ()), *(strict or ()), *kept, *declared))


FLOAT32_PARTS = "_dsctl_float32_parts"  # attribute of a loaded model with the parts that its family declares


def declare_float32_parts(model: nn.Module, declared: Sequence[str]) -> None:
    """Store on `model` the parts that its family declares as float32, for later casts."""
    if declared:
        setattr(model, FLOAT32_PARTS, tuple(declared))


def dtype_of(name: str, tensor: Tensor, dtype: torch.dtype, parts: frozenset[str]) -> torch.dtype:
    """Return the dtype of the weight `name` in a model of dtype `dtype` with the float32 `parts`."""
    if not tensor.is_floating_point():
        return tensor.dtype
    return torch.float32 if parts.intersection(name.split(".")) else dtype


def cast_weights(model: nn.Module, dtype: torch.dtype, *, frozen_only: bool = False) -> nn.Module:
    """Cast the parameters and persistent buffers of `model` to `dtype`, except parts that stay in float32.

    Buffers that are not persistent, such as tables of rotary embeddings, are unchanged. With `frozen_only`, trained
    parameters and all buffers are unchanged.
    """
    parts = float32_parts(model, dtype=dtype)
    for name, parameter in model.named_parameters():
        wanted = dtype_of(name, parameter, dtype, parts)
        if parameter.dtype != wanted and not (frozen_only and parameter.requires_grad):
            parameter.data = parameter.data.to(wanted)
    if frozen_only:
        return model
    saved = model.state_dict(keep_vars=True)
    for name, buffer in model.named_buffers():
        wanted = dtype_of(name, buffer, dtype, parts)
        if name in saved and buffer.dtype != wanted:
            buffer.data = buffer.data.to(wanted)
    return model
