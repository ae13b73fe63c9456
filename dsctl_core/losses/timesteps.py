"""Which noise levels training draws, and how much each of them counts.

Legend: a table of n levels goes from noise (position 0) to the clean picture (position 1). Before the shift, the level
at position p is t = 1 - p; the shift s makes sigma = s t / (1 + (s - 1) t) of it, and timestep = 1000 * sigma.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from dsctl_core.errors import UsageError
from dsctl_core.random import derive_seed
from dsctl_core.scheduler import FlowMatchScheduler

Sampling = Literal["uniform", "logit_normal"]
Weighting = Literal["bell", "none"]


@dataclass(frozen=True)
class Objective:
    """How noise levels are drawn and weighted.

    "uniform" draws every level of the table equally often; "logit_normal" draws t with logit(t) normal, of
    `logit_mean` and `logit_std` (Esser et al. 2024, arXiv:2403.03206, section 3.1). Only positions from `min_boundary`
    to `max_boundary` are drawn. `shift` takes the place of the family's own (None), and 1 is none. "bell" weights as
    the schedule says, "none" all levels alike.
    """

    sampling: Sampling = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift: float | None = None
    min_boundary: float = 0.0
    max_boundary: float = 1.0
    weighting: Weighting = "bell"

    def apply(self, scheduler: FlowMatchScheduler) -> None:
        """Have `scheduler` shift its training table as asked for, from the next time that it loads it."""
        if self.shift is not None:
            scheduler.training_mu = math.log(self.shift)

    def draw(self, scheduler: FlowMatchScheduler, count: int, seed: int | list[int | None] | None) -> Tensor:
        """Draw `count` timesteps from the scheduler's training table, (count,) float32.

        With seeds, one for each sample, a sample's timestep depends on its own seed alone; without, on torch's
        generator.
        """
        levels = scheduler.timesteps
        seeds = seed if isinstance(seed, list) else [seed] * count
        return levels[torch.cat([self._pick(len(levels), _generator(each)) for each in seeds])]

    def weight(self, scheduler: FlowMatchScheduler, timestep: Tensor) -> Tensor:
        """Return how much the error at each timestep counts, (B,) float32."""
        if self.weighting == "none":
            return torch.ones_like(timestep, dtype=torch.float32)
        return scheduler.training_weight(timestep)

    def _pick(self, levels: int, generator: torch.Generator | None) -> Tensor:
        """Draw a place in a table of `levels`, (1,) int64."""
        low, high = round(self.min_boundary * levels), round(self.max_boundary * levels)
        if low >= high:
            raise UsageError(
                f"no level lies between the timestep boundaries {self.min_boundary:g} and {self.max_boundary:g}",
                hint="0 is noise and 1 the clean picture; leave some room between them",
            )
        if self.sampling == "uniform":
            return torch.randint(low, high, (1,), generator=generator)
        normal = NormalDist(self.logit_mean, self.logit_std)
        least, most = (normal.cdf(_logit(1 - place / levels)) for place in (high, low))
        # By the inverse of the distribution function, so that a sample costs one draw within any boundaries.
        share = least + (most - least) * float(torch.rand(1, dtype=torch.float64, generator=generator))
        level = _logistic(normal.inv_cdf(share)) if 0 < share < 1 else share
        place = min(max(math.floor((1 - level) * levels), low), high - 1)
        return torch.tensor([place])


def _logit(level: float) -> float:
    if level <= 0 or level >= 1:
        return math.copysign(math.inf, level - 0.5)
    return math.log(level / (1 - level))


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def _generator(seed: int | None) -> torch.Generator | None:
    return None if seed is None else torch.Generator().manual_seed(derive_seed(seed, "timestep"))
