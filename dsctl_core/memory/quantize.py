"""Store frozen weights in 8 bits."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from dsctl_core.memory.dtypes import float32_parts

# An output head can share its weight with the embedding.
SKIPPED = ("norm", "pos_embed", "embed_tokens", "lm_head", "lora_")


def store_in_fp8(model: nn.Module, compute_dtype: torch.dtype) -> None:
    """Store the weights of large layers of `model` in float8_e4m3, and cast each to `compute_dtype` while it runs.

    Norms, embeddings, LoRA layers, and layers that the class of the model excludes or keeps in float32, keep their
    dtype. The stored weights must be frozen, because gradients cannot be applied to them.
    """
    from diffusers.hooks import apply_layerwise_casting

    declared: Any = getattr(model, "_skip_layerwise_casting_patterns", None) or ()
    apply_layerwise_casting(
        model,
        storage_dtype=torch.float8_e4m3fn,
        compute_dtype=compute_dtype,
        skip_modules_pattern=(*SKIPPED, *declared, *(re.escape(name) for name in sorted(float32_parts(model)))),
    )


def compute_dtype(model: nn.Module, weight: torch.Tensor) -> torch.dtype:
    """Return the dtype in which a diffusers model computes; `weight` is one of its large weights.

    This is the dtype of `weight`, which is faster than `model.dtype`, a walk over all modules. For weights stored in 8
    bits, only the hooks of the model know the dtype, and `model.dtype` is used.
    """
    return weight.dtype if weight.dtype.itemsize > 1 else model.dtype  # type: ignore[return-value]
