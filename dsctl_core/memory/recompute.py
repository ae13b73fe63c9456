"""Gradient checkpointing: keep a block's inputs and compute its activations again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from dsctl_core.errors import UsageError
from dsctl_core.memory.blocks import repeated_blocks
from dsctl_core.memory.offload import spread

Around = Callable[[], AbstractContextManager[Any]]
_around: ContextVar[Around | None] = ContextVar("around", default=None)


@contextmanager
def recomputed_inside(around: Around) -> Iterator[None]:
    """Have every block that is called in here be computed again inside of `around()`.

    For what changes a model during one call: by the time of the backward pass that call is long over. Inside of another
    such block, both are in force.
    """
    outer = _around.get()

    @contextmanager
    def both() -> Iterator[None]:
        with nullcontext() if outer is None else outer(), around():
            yield

    token = _around.set(both)
    try:
        yield
    finally:
        _around.reset(token)


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
    if getattr(block, KEEPS, False) or not (use_gradient_checkpointing or use_gradient_checkpointing_offload):
        return block(*args, **kwargs)
    around = _around.get()
    contexts = noop_context_fn if around is None else lambda: (nullcontext(), around())
    # From memory that is not pinned a GPU could not copy while it computes.
    host = torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available())
    with host if use_gradient_checkpointing_offload else nullcontext():
        return checkpoint(block, *args, use_reentrant=False, context_fn=contexts, **kwargs)


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


def set_checkpointing(model: Any, use_gradient_checkpointing: bool, offload: bool) -> None:
    """Plug gradient_checkpoint_forward into the blocks of one of diffusers' models, or take it out.

    Does nothing where nothing changes; what the two flags mean is said there.
    """

    def run_block(block: Any, *args: Any) -> Any:
        return gradient_checkpoint_forward(block, use_gradient_checkpointing, offload, *args)

    if use_gradient_checkpointing or offload:
        model.enable_gradient_checkpointing(gradient_checkpointing_func=run_block)
    elif model.gradient_checkpointing:
        model.disable_gradient_checkpointing()
