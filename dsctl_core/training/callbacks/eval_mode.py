"""Run the model during training without changing the results of training."""

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
    """Put the model into evaluation mode inside the context, with `run.shown_weights` and without gradients.

    At the end, every module returns to its mode and every random generator of torch to its state.
    """
    modes = {module: module.training for module in run.model.modules()}
    device = run.accelerator.device
    apple = torch.mps.get_rng_state() if device.type == "mps" else None  # fork_rng does not keep it
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad(), run.shown_weights():
        run.model.eval()
        try:
            yield
        finally:
            if apple is not None:
                torch.mps.set_rng_state(apple)
            for module, training in modes.items():
                module.training = training
                if isinstance(module, FSDPModule):
                    # After a forward without a backward the module may still be unsharded, and would keep these weights
                    # when its shards change: the shown weights instead of those in training.
                    module.reshard()


def in_lockstep(run: TrainingRun) -> bool:
    """Return whether the model is sharded, so that all processes must run it equally often."""
    in_pieces = any(isinstance(parameter, DTensor) for parameter in run.model.parameters())
    return in_pieces or run.accelerator.distributed_type == "DEEPSPEED"
