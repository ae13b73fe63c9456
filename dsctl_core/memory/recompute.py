"""Gradient checkpointing: keep a block's inputs and compute its activations again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dsctl_core.errors import UsageError
from dsctl_core.memory.blocks import repeated_blocks
from dsctl_core.memory.offload import spread

KEEPS = "keeps_activations"  # set on a block that is not checkpointed


def gradient_checkpoint_forward(
    block: Callable[..., Any],
    use_gradient_checkpointing: bool,
    use_gradient_checkpointing_offload: bool,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Call `block(*args, **kwargs)`, dropping its activations until the backward pass needs them.

    With `use_gradient_checkpointing_offload` what must be kept, the block's inputs, waits in the host's memory.
    With neither, and for a block that `checkpoint_some` left out, this is a plain call. The results and the gradients
    are the same in every case (Chen et al. 2016, arXiv:1604.06174).
    """
    if getattr(block, KEEPS, False):
        return block(*args, **kwargs)
    if use_gradient_checkpointing_offload:
        # From memory that is not pinned a GPU could not copy while it computes.
        with torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available()):
            return checkpoint(block, *args, use_reentrant=False, **kwargs)
    if use_gradient_checkpointing:
        return checkpoint(block, *args, use_reentrant=False, **kwargs)
    return block(*args, **kwargs)


def checkpoint_some(model: nn.Module, count: int) -> None:
    """Let only `count` of the repeated blocks of `model`, evenly spread, be checkpointed; the others keep all."""
    blocks = list(repeated_blocks(model).values())
    if count > len(blocks):
        raise UsageError(
            f"--gradient-checkpointing-blocks is {count}, but the {type(model).__name__} has {len(blocks)} blocks",
            hint=f"give at most {len(blocks)}",
        )
    chosen = set(spread(count, len(blocks)))
    for index, block in enumerate(blocks):
        setattr(block, KEEPS, index not in chosen)
