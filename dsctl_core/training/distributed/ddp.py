"""Have the processes of DDP agree on which trained weights get a gradient: found out once, at each step, or told.

DDP adds up the gradients of a bucket of weights when all of them are there. Some weights of most models never get one.
With its search DDP walks the graph of every forward pass for these, and adds up which are used in any process. With a
static graph it notes them in the first backward pass, and walks no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from accelerate.utils import DistributedType
from torch import nn

from dsctl_core.errors import UsageError

if TYPE_CHECKING:
    from accelerate import Accelerator

WITH_DDP = (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
UNFINISHED = "Expected to have finished reduction"  # torch's error for weights without a gradient in several processes
CHANGED = "Your training graph has changed"  # and for weights that get their first one after the first step


class UsedWeights:
    """Checks at each step, before the update, that DDP has added up all gradients of `parameters` that there are."""

    def __init__(self, accelerator: Accelerator, parameters: Sequence[nn.Parameter]) -> None:
        handler = accelerator.ddp_handler if accelerator.distributed_type in WITH_DDP else None
        self.static = handler is not None and handler.static_graph
        self.all = handler is not None and not self.static and not handler.find_unused_parameters
        self.parameters = parameters
        self.unused: list[int] | None = None
        self._begun = False

    def begins(self) -> bool:
        """Return whether this is the first micro-batch of a static graph: torch must add up gradients in it, too.

        Otherwise it has noted nothing when it is to wait for what it has noted.
        """
        begun, self._begun = self._begun, True
        return self.static and not begun

    def require(self, step: int) -> None:
        """Raise a UsageError if weights lack a gradient that torch waits for.

        Torch itself finds out only in the next step: until then the gradients of other weights are not averaged.
        """
        if not self.static and not self.all:
            return
        unused = [number for number, parameter in enumerate(self.parameters) if parameter.grad is None]
        if self.all and unused:
            raise _unused_weights()
        if self.unused is None:
            self.unused = unused
        elif unused != self.unused:
            raise _changed(f"step {step} computes")


@contextmanager
def naming_unused_weights(used: UsedWeights) -> Iterator[None]:
    """Raise a UsageError that names the option where torch finds that gradients are missing, or were not expected."""
    try:
        yield
    except RuntimeError as error:
        if UNFINISHED not in str(error) and CHANGED not in str(error):
            raise
        raise (_changed("a step computes") if used.static else _unused_weights()) from error


def _unused_weights() -> UsageError:
    return UsageError(
        "--no-find-unused-parameters is given, but some trained weights get no gradient, as in most models",
        hint="leave it out: several processes then wait for no gradient of these",
    )


def _changed(what: str) -> UsageError:
    return UsageError(
        f"{what} with other trained weights than the first step, which several processes have agreed on",
        hint="give --find-unused-parameters, with which they agree anew at each step",
    )
