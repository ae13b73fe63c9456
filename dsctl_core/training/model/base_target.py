"""Learn what the model predicts without its LoRA: the target of regularization datasets that keep the base's output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsctl_core.errors import UsageError
from dsctl_core.lora.adapters import tuner_layers
from dsctl_core.losses import Loss
from dsctl_core.losses.timesteps import Objective
from dsctl_core.options.datasets import DatasetTable
from dsctl_core.pipeline import BasePipeline


@dataclass(frozen=True)
class BaseTarget:
    """Replaces the target of a batch by the prediction of `models` without their LoRAs.

    Where `used` is false the prediction is made and dropped: a model that is divided between processes must be run
    equally often in all of them.
    """

    models: tuple[nn.Module, ...]
    used: bool = True

    def __call__(self, predict: Callable[[], Tensor], target: Tensor) -> Tensor:
        """Return what `predict` returns without LoRA, with no gradient, or `target` where it is not used."""
        with torch.no_grad(), lora_off(self.models):
            predicted = predict()
        return predicted if self.used else target


@contextmanager
def lora_off(models: Sequence[nn.Module]) -> Iterator[None]:
    """Let the LoRAs in training on `models` have no effect inside the block."""
    layers = [layer for model in models for layer in tuner_layers(model).values()]
    # peft's enable_adapters() also takes the gradient from the weights, which FSDP2 would keep.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def check_tables_for(
    tables: Sequence[DatasetTable],
    pipe: BasePipeline,
    trained: Sequence[str],
    whole: Sequence[str],
    loss: Loss,
    objective: Objective,
) -> None:
    """Raise UsageError for a table that asks for what a training cannot have.

    Args:
        tables: The tables.
        pipe: The pipeline, with or without its components.
        trained: The components that are trained.
        whole: Those of them that are not trained by a LoRA alone.
        loss: The loss of the training.
        objective: The levels that are drawn where a table does not say.
    """
    denoisers = {denoiser.name for denoiser in pipe.parts.denoisers}
    other = next((name for name in (*whole, *trained) if name in whole or name not in denoisers), None)
    for table in tables:
        bounded = table.min_timestep_boundary is not None or table.max_timestep_boundary is not None
        if bounded and not loss.draws_levels:
            raise UsageError(
                f"the timestep boundaries of [[dataset]] {table.label} have no effect on the task {loss.task}, which "
                "draws no levels",
                hint="leave them out",
            )
        own = objective.within(table.min_timestep_boundary, table.max_timestep_boundary)
        if own.min_boundary >= own.max_boundary:
            raise UsageError(
                f"the timestep boundaries of [[dataset]] {table.label}, {own.min_boundary:g} and {own.max_boundary:g}, "
                "leave no level to draw",
                hint="what the table leaves out is as --min-timestep-boundary and --max-timestep-boundary say",
            )
        if table.target == "base" and not loss.draws_levels:
            raise UsageError(
                f'target = "base" of [[dataset]] {table.label} has no effect on the task {loss.task}, which does not '
                "predict single steps",
                hint="leave it out",
            )
        if table.target == "base" and other is not None:
            raise UsageError(
                f'target = "base" of [[dataset]] {table.label} needs the model as it was, and training changes the '
                f"{other} itself or what it is given",
                hint='train a LoRA on the denoiser alone, or leave target = "base" out',
            )
