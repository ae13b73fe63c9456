"""Losses: each a callable `(pipe, **inputs)` that says which task it is and what it needs. Adding one adds a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsctl_core.random import derive_seed

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline

Loss = Callable[..., Tensor]


def loss(task: str, requires: tuple[str, ...]) -> Callable[[Loss], Loss]:
    """Mark a callable as the loss of `task`; `requires` are the inputs it reads beyond those of `model_fn`."""

    def mark(function: Loss) -> Loss:
        function.task, function.requires = task, requires  # type: ignore[attr-defined]
        return function

    return mark


@loss(task="sft", requires=("input_latents", "noise"))
def FlowMatchSFTLoss(pipe: BasePipeline, **inputs: Any) -> Tensor:
    """Flow-matching regression: predict the velocity `noise - x0` at a random noise level.

    With x_sigma = (1 - sigma) * x0 + sigma * noise, the target dx/dsigma does not depend on sigma
    (Lipman et al. 2022, arXiv:2210.02747; Esser et al. 2024, arXiv:2403.03206).

    Reads `input_latents` x0 and `noise`, both (B, ...); `timestep` (B,) = 1000 * sigma is drawn for each sample from
    the schedule when it is not given, from its `seed` where there is one. Returns the scalar mean over the batch of
    each sample's weighted mean squared error, computed in float32.
    """
    x0, noise = inputs["input_latents"], inputs["noise"]
    timestep = inputs.pop("timestep", None)
    if timestep is None:
        timestep = draw_timesteps(pipe, len(x0), inputs.get("seed"))
    timestep = timestep.to(x0.device)
    inputs["latents"] = pipe.scheduler.add_noise(x0, noise, timestep)
    target = pipe.scheduler.training_target(x0, noise, timestep)
    prediction = pipe.call_model_fn(timestep=timestep, **inputs)
    errors = (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
    return (errors * pipe.scheduler.training_weight(timestep).to(errors)).mean()


def draw_timesteps(pipe: BasePipeline, count: int, seed: int | list[int | None] | None) -> Tensor:
    """Draw `count` timesteps from the training schedule, (count,) float32.

    With seeds, one for each sample, a sample's timestep depends on its own seed alone; without, on torch's generator.
    """
    levels = pipe.scheduler.timesteps
    seeds = seed if isinstance(seed, list) else [seed] * count
    picks = [torch.randint(len(levels), (1,), generator=_generator(each)) for each in seeds]
    return levels[torch.cat(picks)]


def _generator(seed: int | None) -> torch.Generator | None:
    return None if seed is None else torch.Generator().manual_seed(derive_seed(seed, "timestep"))


LOSSES: dict[str, Loss] = {function.task: function for function in (FlowMatchSFTLoss,)}  # type: ignore[attr-defined]
