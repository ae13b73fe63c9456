"""Gradient checkpointing: keep a block's inputs and compute its activations again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint, noop_context_fn

Around = Callable[[], AbstractContextManager[Any]]
_around: ContextVar[Around | None] = ContextVar("around", default=None)


@contextmanager
def recomputed_inside(around: Around) -> Iterator[None]:
    """Have every block that is called in here be computed again inside of `around()`.

    For what changes a model during one call: by the time of the backward pass that call is long over.
    """
    token = _around.set(around)
    try:
        yield
    finally:
        _around.reset(token)


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
    if not use_gradient_checkpointing and not use_gradient_checkpointing_offload:
        return block(*args, **kwargs)
    around = _around.get()
    contexts = noop_context_fn if around is None else lambda: (nullcontext(), around())
    with torch.autograd.graph.save_on_cpu() if use_gradient_checkpointing_offload else nullcontext():
        return checkpoint(block, *args, use_reentrant=False, context_fn=contexts, **kwargs)
