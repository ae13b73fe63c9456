"""Keep an exponential moving average (EMA) of the trained weights, save it, and use it for samples and validation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.training.callbacks.base import TrainingHook
from dsctl_core.training.distributed.fsdp import like

if TYPE_CHECKING:
    from dsctl_core.training.callbacks.base import TrainingRun
    from dsctl_core.training.output.logger import StepRecord

VARIANT = "ema"  # in the file name: step-N.ema.safetensors


class AverageWeights(TrainingHook):
    """Keeps the average of the trained weights in float32, four bytes for each trained number, on their device.

    After update n, average = d_n * average + (1 - d_n) * weights, with d_n = min(decay, (1 + n) / (10 + n)): while the
    weights still move fast, the average follows them faster, so that the initial weights soon stop to count.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.averages: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}

    def on_training_start(self, run: TrainingRun) -> None:
        """Start from the current weights, and register the average for saving, samples and validation."""
        if run.accelerator.distributed_type == "DEEPSPEED":
            raise UsageError(
                "--ema-decay cannot be used with DeepSpeed, which keeps the exact weights to itself",
                hint="leave it out, or use FSDP2: examples/accelerate/fsdp2.yaml",
            )
        self.weights = {name: weight.detach() for name, weight in run.model.trainable_parameters()}
        for name, weight in self.weights.items():
            if weight.dtype != torch.float32:
                raise UsageError(
                    f"{name} is trained in {weight.dtype}, in which an average would stand still",
                    hint="train it in float32, or leave --ema-decay out",
                )
        self.averages = {name: weight.clone() for name, weight in self.weights.items()}
        run.logger.variants[VARIANT] = self.in_place
        run.shown_weights = self.in_place

    @torch.no_grad()
    def on_step_end(self, run: TrainingRun, record: StepRecord) -> None:
        """Update the average."""
        self.updates += 1
        share = 1 - decay_after(self.updates, self.decay)
        torch._foreach_lerp_(list(self.averages.values()), list(self.weights.values()), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averages into the model inside the context, and the training weights back at its end."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        # Copy the values rather than swap tensors: optimizers and FSDP2 keep references to these tensors.
        for name, weight in self.weights.items():
            kept = weight.clone()
            weight.copy_(self.averages[name])
            self.averages[name].copy_(kept)

    def state(self) -> dict[str, Any]:
        """Return the averages, sharded as they are between processes, and the number of updates."""
        return {"updates": self.updates, "averages": dict(self.averages)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        saved = state["averages"]
        for name in saved.keys() ^ self.averages.keys():
            raise DsctlError(
                f"the average of {name} is only in one of the saved state and this run",
                hint="resume with the options that the run was begun with",
            )
        self.updates = int(state["updates"])
        for name, average in self.averages.items():
            average.copy_(like(saved[name], average))


def decay_after(updates: int, decay: float) -> float:
    """Return the decay d_n of update n = `updates`, counted from 1."""
    return min(decay, (1 + updates) / (10 + updates))
