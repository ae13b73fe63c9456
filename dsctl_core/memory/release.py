"""Give back the memory of models that are no longer used."""

from __future__ import annotations

import gc

import torch


def release_memory() -> None:
    """Collect models that only refer to themselves, and give memory that torch keeps for reuse back to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
