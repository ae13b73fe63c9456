"""Give back the memory of models that are no longer used."""

from __future__ import annotations

import gc
from collections.abc import Iterable

import torch
from torch import nn

from dsctl_core.memory.mps import has_mps

WORTH = 64 * 2**20  # bytes of weights; the collector looks at every object of the process, for up to half a second


def release_memory(freed: int = WORTH) -> None:
    """Collect models that only refer to themselves, and give memory that torch keeps for reuse back to the GPU.

    `freed` are the bytes that can be expected; for less than WORTH nothing is collected now.
    """
    if freed < WORTH:
        return
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if has_mps():
        torch.mps.empty_cache()


def weight_bytes(models: Iterable[nn.Module]) -> int:
    """Return the bytes of the weights of `models`."""
    return sum(tensor.nbytes for model in models for tensor in (*model.parameters(), *model.buffers()))
