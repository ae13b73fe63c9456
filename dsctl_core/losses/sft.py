"""Supervised fine-tuning: predict the velocity at a random noise level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from dsctl_core.losses.contract import loss
from dsctl_core.losses.timesteps import Objective

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline


@loss(task="sft", requires=("input_latents", "noise"))
def FlowMatchSFTLoss(pipe: BasePipeline, **inputs: Any) -> Tensor:
    """Flow-matching regression: predict the velocity `noise - x0` at a random noise level.

    With x_sigma = (1 - sigma) * x0 + sigma * noise, the target dx/dsigma does not depend on sigma
    (Lipman et al. 2022, arXiv:2210.02747; Esser et al. 2024, arXiv:2403.03206).

    Reads `input_latents` x0 and `noise`, both (B, ...); `timestep` (B,) = 1000 * sigma is drawn for each sample as
    `objective` says (None: evenly from the schedule's table) when it is not given, from its `seed` where there is one.
    Returns the scalar mean over the batch of each sample's weighted mean squared error, computed in float32.
    """
    x0, noise = inputs["input_latents"], inputs["noise"]
    objective = inputs.pop("objective", None) or Objective()
    timestep = inputs.pop("timestep", None)
    if timestep is None:
        timestep = objective.draw(pipe.scheduler, len(x0), inputs.get("seed"))
    timestep = timestep.to(x0.device)
    inputs["latents"] = pipe.scheduler.add_noise(x0, noise, timestep)
    target = pipe.scheduler.training_target(x0, noise, timestep)
    prediction = pipe.call_model_fn(timestep=timestep, **inputs)
    errors = (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
    return (errors * objective.weight(pipe.scheduler, timestep).to(errors)).mean()
