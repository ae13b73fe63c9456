"""Using the model in the middle of its training, without training being able to tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from dsctl_core.training.callbacks.base import TrainingRun


@contextmanager
def eval_mode(run: TrainingRun) -> Iterator[None]:
    """Have the model as it would be taken away: evaluation mode, no gradients, `run.shown_weights`.

    Afterwards every module is in the mode that it was in, and every random generator of torch where it was.
    """
    modes = {module: module.training for module in run.model.modules()}
    device = run.accelerator.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad(), run.shown_weights():
        run.model.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training
                if isinstance(module, FSDPModule):
                    # After a forward that no backward follows it may be whole still, and would stay as it is now when
                    # its pieces change: with the weights that were shown, instead of those in training.
                    module.reshard()


def in_lockstep(run: TrainingRun) -> bool:
    """Return whether the processes hold the model in pieces, so that all must run it, equally often."""
    in_pieces = any(isinstance(parameter, DTensor) for parameter in run.model.parameters())
    return in_pieces or run.accelerator.distributed_type == "DEEPSPEED"
