"""Compute norms on a GPU in one kernel each, in the dtype of their input.

diffusers writes an RMS norm as eight operations, and CUDA's autocast computes layer norms and torch's RMS norms in
float32, so that what follows, up to the next matrix product, moves float32 too, and backward keeps it. The kernels here
accumulate in float32 and round once, as inference without autocast does. On a CPU nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn
from torch.nn.functional import layer_norm, rms_norm


def use_fused_norms(model: nn.Module) -> int:
    """Have each norm of `model` of a kind that has a kernel use it on a GPU; return the number of norms."""
    kinds: dict[type[nn.Module], type[nn.Module]] = {
        RMSNorm: FusedRMSNorm,
        nn.RMSNorm: FusedTorchRMSNorm,
        nn.LayerNorm: FusedLayerNorm,
    }
    found = [module for module in model.modules() if type(module) in kinds]
    for module in found:
        module.__class__ = kinds[type(module)]
    return len(found)


_simulated: ContextVar[bool] = ContextVar("simulated", default=False)


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Compute norms of every tensor inside the context as those of a GPU."""
    token = _simulated.set(True)
    try:
        yield
    finally:
        _simulated.reset(token)


def _fits(x: Any, *weights: Tensor | None) -> bool:
    on_gpu = x.is_cuda or (not torch.compiler.is_compiling() and _simulated.get())
    return on_gpu and all(weight is None or weight.dtype == x.dtype for weight in weights)


class FusedRMSNorm(RMSNorm):
    """diffusers' RMS norm (Zhang and Sennrich 2019, arXiv:1910.07467) in one kernel."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the norm of `hidden_states` (..., channels), in their dtype."""
        if self.bias is not None or not _fits(hidden_states, self.weight):
            plain: Tensor = super().forward(hidden_states)
            return plain
        with torch.autocast(hidden_states.device.type, enabled=False):
            return rms_norm(hidden_states, tuple(self.dim), self.weight, self.eps)


class FusedTorchRMSNorm(nn.RMSNorm):
    """torch's RMS norm that autocast does not compute in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of `x` (..., channels), in its dtype."""
        if not _fits(x, self.weight):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return rms_norm(x, self.normalized_shape, self.weight, self.eps)


class FusedLayerNorm(nn.LayerNorm):
    """A layer norm (Ba et al. 2016, arXiv:1607.06450) that autocast does not compute in float32."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the norm of `input` (..., channels), in its dtype."""
        if not _fits(input, self.weight, self.bias):
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
