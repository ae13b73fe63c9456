"""The exponential moving average of the trained weights: kept beside them, saved beside them, used to look at them."""

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

VARIANT = "ema"  # of a saved file: step-N.ema.safetensors


class AverageWeights(TrainingHook):
    """Keeps the average of the trained weights, in float32: four bytes for each trained number, where it is trained.

    After update n the average moves by 1 - d_n of the way to the weights, with d_n = min(decay, (1 + n) / (10 + n)):
    early on, when the weights still move fast, it follows them faster, so that the start is soon forgotten.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.averages: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}

    def on_training_start(self, run: TrainingRun) -> None:
        """Begin with the weights as they are; have them saved, and drawn with, beside those in training."""
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
        """Move the average towards the weights."""
        self.updates += 1
        share = 1 - decay_after(self.updates, self.decay)
        torch._foreach_lerp_(list(self.averages.values()), list(self.weights.values()), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the averages in the model, and the weights in training out of the way, for as long as this lasts."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        # Number by number rather than by swapping tensors: optimizers and FSDP2 hold on to these very ones.
        for name, weight in self.weights.items():
            kept = weight.clone()
            weight.copy_(self.averages[name])
            self.averages[name].copy_(kept)

    def state(self) -> dict[str, Any]:
        """Return the averages, as they are divided between processes, and how many updates they have seen."""
        return {"updates": self.updates, "averages": dict(self.averages)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
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
    """Return how much of the average stays at update number `updates`, counted from 1."""
    return min(decay, (1 + updates) / (10 + updates))
