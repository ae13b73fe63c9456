"""Build the learning-rate schedule of a run, as a factor for each optimizer update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dsctl_core.errors import UsageError
from dsctl_core.options.optimizer import OptimizerOptions

CYCLES, POWER = 2, 1.0  # defaults of cosine_with_restarts and polynomial


@dataclass(frozen=True)
class LRSchedule:
    """Builds the learning-rate schedule that `options` select."""

    options: OptimizerOptions

    @property
    def follows_length(self) -> bool:
        """Whether the rate of a step depends on the total number of steps."""
        return follows_length(self.options)

    def __call__(self, optimizer: Optimizer, total: int) -> LambdaLR:
        """Build the schedule of `total` updates for an optimizer that has made none yet."""
        rate = float(optimizer.param_groups[0]["lr"])
        return LambdaLR(optimizer, factors(self.options, total, rate))


def plan_lr_schedule(options: OptimizerOptions) -> LRSchedule | None:
    """Return a builder of the schedule from an optimizer and the number of steps; None for a constant rate.

    The state of such a schedule is plain numbers, so that it can be stored as JSON.
    """
    return None if options.lr_scheduler == "constant" else LRSchedule(options)


def follows_length(options: OptimizerOptions) -> bool:
    """Return whether the rate of a step depends on the total number of steps.

    It does if it decays until the end, and if the warm-up is a share of the run.
    """
    steady = options.lr_scheduler in ("constant", "constant_with_warmup")
    return not steady or 0 < options.lr_warmup_steps < 1


def warmup_of(options: OptimizerOptions, total: int) -> int:
    """Return the number of warm-up steps, of `total`; a UsageError if there are none, or none left after them."""
    given = options.lr_warmup_steps
    steps = round(given * total) if given < 1 else int(given)
    if given and not steps:
        raise UsageError(
            f"--lr-warmup-steps {given:g} has no effect: that share of the run's {total} steps is less than one step",
            hint="give a whole number of steps, such as 1, or leave it out",
        )
    if steps >= total:
        raise UsageError(
            f"--lr-warmup-steps {given:g} is not below the run's {total} steps: the full rate is never reached",
            hint="give fewer, or a share such as 0.05",
        )
    return steps


def factors(options: OptimizerOptions, total: int, rate: float) -> Callable[[int], float]:
    """Return the function from the number of finished updates to the factor of `rate` for the next update.

    The shape is that of diffusers, except for the warm-up: there the first update has the rate 0 and changes nothing.
    Here the W updates of the warm-up have 1 / (W + 1), ..., W / (W + 1) of the rate, and the next one has all of it.
    """
    from diffusers.optimization import get_scheduler

    warmup = warmup_of(options, total)
    # diffusers needs an optimizer; only the function of its schedule is used here.
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=rate)
    try:
        shape = get_scheduler(
            options.lr_scheduler,
            stand_in,
            num_warmup_steps=warmup,
            num_training_steps=total,
            num_cycles=options.lr_num_cycles or CYCLES,
            power=options.lr_power or POWER,
        ).lr_lambdas[0]
    except ValueError as error:
        raise UsageError(
            f"--lr-scheduler {options.lr_scheduler} does not suit this rate: {error}", hint="raise --learning-rate"
        ) from error

    def factor(done: int) -> float:
        return (done + 1) / (warmup + 1) if done < warmup else float(shape(done))

    return factor
