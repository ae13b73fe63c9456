"""The dtype of each weight of a model: some parts stay in float32 however the rest is held.

Which they are is said by the class (`_keep_in_fp32_modules`, as diffusers and transformers have it) and by the family
(`Component.float32_parts`): names of modules or parameters, of which one part of a weight's dotted name is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def float32_parts(model: nn.Module, declared: Sequence[str] = ()) -> frozenset[str]:
    """Return the names of the parts of `model` that stay in float32; `declared` are those that its family names."""
    own: Any = getattr(model, "_keep_in_fp32_modules", None)
    kept: Any = getattr(model, FLOAT32_PARTS, ())
    return frozenset((*(own or ()), *kept, *declared))


FLOAT32_PARTS = "_dsctl_float32_parts"  # what the family of a loaded model declares, kept on the model


def declare_float32_parts(model: nn.Module, declared: Sequence[str]) -> None:
    """Remember on `model` which parts its family wants in float32, for whatever casts the model later."""
    if declared:
        setattr(model, FLOAT32_PARTS, tuple(declared))


def dtype_of(name: str, tensor: Tensor, dtype: torch.dtype, parts: frozenset[str]) -> torch.dtype:
    """Return the dtype of the weight called `name` in a model that is held in `dtype`."""
    if not tensor.is_floating_point():
        return tensor.dtype
    return torch.float32 if parts.intersection(name.split(".")) else dtype


def cast_weights(model: nn.Module, dtype: torch.dtype, *, frozen_only: bool = False) -> nn.Module:
    """Bring the parameters and the saved buffers of `model` to `dtype`, but for the parts that stay in float32.

    Buffers that are not saved with the weights, such as tables of rotary embeddings, stay as the class computed them.
    With `frozen_only`, trained parameters and all buffers stay as they are.
    """
    parts = float32_parts(model)
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
