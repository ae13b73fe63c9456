"""Storing frozen weights in eight bits."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from dsctl_core.memory.dtypes import float32_parts

# A head may share its weight with the embedding.
SKIPPED = ("norm", "pos_embed", "embed_tokens", "lm_head", "lora_")


def store_in_fp8(model: nn.Module, compute_dtype: torch.dtype) -> None:
    """Keep the weights of `model`'s large layers in float8_e4m3 and cast each to `compute_dtype` while it runs.

    Norms, embeddings and LoRA layers keep their dtype, and so does what the model's class leaves out of such casts or
    keeps in float32. The stored weights must be frozen: a gradient could not be applied to them.
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
    """Return the dtype that a model of diffusers computes in, given one of its large weights.

    The weight's dtype, without the walk over all modules that `model.dtype` is; of weights stored in eight bits only
    the model's hooks know what they are computed with in, and then it is asked.
    """
    return weight.dtype if weight.dtype.itemsize > 1 else model.dtype  # type: ignore[return-value]
