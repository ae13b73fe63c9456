"""Implement gradient checkpointing: keep the inputs of a block, and recompute its activations in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from itertools import accumulate, pairwise
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from dsctl_core.errors import UsageError
from dsctl_core.memory.blocks import blocks_by_list
from dsctl_core.memory.host_inputs import HostInputs
from dsctl_core.readable import counted

Around = Callable[[], AbstractContextManager[Any]]
_around: ContextVar[Around | None] = ContextVar("around", default=None)


@contextmanager
def recomputed_inside(around: Around) -> Iterator[None]:
    """Recompute every block that is called inside this context within the context `around()`.

    This is for changes of a model that last for one call, because the backward pass recomputes after the call has
    ended. Contexts can be nested, and then all apply.
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


KEEPS = "keeps_activations"  # attribute of a block that is not checkpointed


def gradient_checkpoint_forward(
    block: Callable[..., Any],
    use_gradient_checkpointing: bool,
    use_gradient_checkpointing_offload: bool,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Call `block(*args, **kwargs)` with gradient checkpointing (Chen et al. 2016, arXiv:1604.06174).

    With `use_gradient_checkpointing_offload` the saved inputs of the block are kept in host memory. With neither flag,
    and for a block that `checkpoint_some` excluded, this is a plain call. Results and gradients are the same in every
    case.
    """
    inputs = HostInputs() if use_gradient_checkpointing_offload else None
    return run_checkpointed(block, use_gradient_checkpointing, inputs, *args, **kwargs)


def run_checkpointed(
    block: Callable[..., Any], recompute: bool, inputs: HostInputs | None, *args: Any, **kwargs: Any
) -> Any:
    """Call `block`, recomputed if `recompute`, or if there are `inputs` to keep what is saved for that."""
    if getattr(block, KEEPS, False) or not (recompute or inputs is not None):
        return block(*args, **kwargs)
    around = _around.get()
    contexts = noop_context_fn if around is None else lambda: (nullcontext(), around())
    with nullcontext() if inputs is None else inputs.of_block():
        return checkpoint(block, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def checkpoint_some(model: nn.Module, count: int) -> None:
    """Checkpoint only `count` repeated blocks of `model`; the others keep their activations.

    Raises UsageError if the model has fewer blocks.
    """
    lists = blocks_by_list(model)
    blocks = [block for own in lists.values() for block in own]
    if count > len(blocks):
        raise UsageError(
            f"--gradient-checkpointing-blocks is {count}, but the {type(model).__name__} has "
            f"{counted(len(blocks), 'block')}",
            hint=f"give at most {len(blocks)}",
        )
    for own, keeping in zip(lists.values(), kept_of_lists(count, list(map(len, lists.values()))), strict=True):
        kept = {len(own) - 1 - number * len(own) // keeping for number in range(keeping)}
        for index, block in enumerate(own):
            setattr(block, KEEPS, index in kept)


def kept_of_lists(count: int, lengths: Sequence[int]) -> list[int]:
    """Return how many blocks of each list keep their activations where `count` of all are checkpointed.

    They are evenly spread, and the last of a list is among them: the backward pass begins with that, while all that is
    kept is there, and to recompute it then would take the memory of one more.
    """
    keeping, among = sum(lengths) - count, sum(lengths)
    ends = [keeping * end // among for end in accumulate(lengths, initial=0)]
    return [end - start for start, end in pairwise(ends)]


def set_checkpointing(model: Any, use_gradient_checkpointing: bool, offload: bool) -> None:
    """Enable or disable gradient checkpointing as of `gradient_checkpoint_forward` on a diffusers model.

    See there for the two flags. The inputs of the blocks of one pass are kept together: this is called before each.
    """
    inputs = HostInputs() if offload else None

    def run_block(block: Any, *args: Any) -> Any:
        return run_checkpointed(block, use_gradient_checkpointing, inputs, *args)

    if use_gradient_checkpointing or offload:
        model.enable_gradient_checkpointing(gradient_checkpointing_func=run_block)
    elif model.gradient_checkpointing:
        model.disable_gradient_checkpointing()
