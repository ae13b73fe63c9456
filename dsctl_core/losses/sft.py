"""Supervised fine-tuning: predict the velocity at a random noise level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsctl_core.errors import DsctlError
from dsctl_core.losses.contract import loss
from dsctl_core.losses.timesteps import Objective
from dsctl_core.memory.pinned import on_device

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline


@loss(task="sft", requires=("input_latents", "noise"), optional=("loss_mask",))
def FlowMatchSFTLoss(pipe: BasePipeline, **inputs: Any) -> Tensor:
    """Flow-matching regression: predict the velocity `noise - x0` at a random noise level.

    With x_sigma = (1 - sigma) * x0 + sigma * noise, the target dx/dsigma does not depend on sigma
    (Lipman et al. 2022, arXiv:2210.02747; Esser et al. 2024, arXiv:2403.03206).

    Reads `input_latents` x0 and `noise`, both (B, ...); `timestep` (B,) = 1000 * sigma is drawn for each sample as
    `objective` says (None: evenly from the schedule's table) when it is not given, from its `seed` where there is one.
    `loss_mask`, where a unit writes one, says how much the error at each place of the latents counts: it is at least 0,
    of a shape that expands to theirs, such as (B, 1, t, 1, 1), and a sample's mean is over what counts.
    `base_target`, where it is given, is called with the prediction and the target, and returns another target.
    Returns each sample's weighted mean squared error, (B,), computed in float32.
    """
    x0, noise = inputs["input_latents"], inputs["noise"]
    objective = inputs.pop("objective", None) or Objective()
    timestep = inputs.pop("timestep", None)
    if timestep is None:
        timestep = objective.draw(pipe.scheduler, len(x0), inputs.get("seed"))
    timestep = on_device(timestep, x0.device)
    inputs["latents"] = pipe.scheduler.add_noise(x0, noise, timestep)
    target = pipe.scheduler.training_target(x0, noise, timestep)
    base_target = inputs.pop("base_target", None)
    if base_target is not None:
        target = base_target(lambda: pipe.call_model_fn(timestep=timestep, **inputs), target)
    prediction = pipe.call_model_fn(timestep=timestep, **inputs)
    errors = mean_by_sample((prediction.float() - target.float()).square(), inputs.get("loss_mask"))
    return errors * objective.weight(pipe.scheduler, timestep).to(errors)


def mean_by_sample(errors: Tensor, mask: Tensor | None) -> Tensor:
    """Return each sample's mean of `errors` (B, ...), (B,): over what counts, and as much as it does, with a `mask`.

    Where all of a sample counts it is the plain mean, to the bit. A sample of which nothing counts is a DsctlError.
    """
    plain = errors.flatten(1).mean(dim=1)
    if mask is None:
        return plain
    counted = mask.to(errors).expand_as(errors).flatten(1)
    total = counted.sum(dim=1)
    if not bool((total > 0).all()):
        raise DsctlError("the loss_mask of a sample leaves nothing that counts", hint="leave out such rows")
    # A GPU divides a mean and a sum differently.
    return torch.where((counted == 1).all(dim=1), plain, (errors.flatten(1) * counted).sum(dim=1) / total)
