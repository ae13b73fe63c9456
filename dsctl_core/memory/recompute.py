"""Gradient checkpointing: keep a block's inputs and compute its activations again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def gradient_checkpoint_forward(
    block: Callable[..., Any],
    use_gradient_checkpointing: bool,
    use_gradient_checkpointing_offload: bool,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Call `block(*args, **kwargs)`, dropping its activations until the backward pass needs them.

    With `use_gradient_checkpointing_offload` what must be kept, the block's inputs, waits in the host's memory.
    With neither, this is a plain call. The results and the gradients are the same in every case
    (Chen et al. 2016, arXiv:1604.06174).
    """
    if use_gradient_checkpointing_offload:
        with torch.autograd.graph.save_on_cpu():
            return checkpoint(block, *args, use_reentrant=False, **kwargs)
    if use_gradient_checkpointing:
        return checkpoint(block, *args, use_reentrant=False, **kwargs)
    return block(*args, **kwargs)
