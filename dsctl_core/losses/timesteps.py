"""Draw the noise levels of training, and weight them.

Legend: a table of n levels goes from noise (position 0) to the clean picture (position 1). Before the shift, the level
at position p is t = 1 - p; the shift s makes sigma = s t / (1 + (s - 1) t) of it, and timestep = 1000 * sigma.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from dsctl_core.errors import UsageError
from dsctl_core.family import Denoiser, Family
from dsctl_core.random import derive_seed
from dsctl_core.scheduler import FlowMatchScheduler

Sampling = Literal["uniform", "logit_normal", "diffsynth"]
Weighting = Literal["bell", "none"]


@dataclass(frozen=True)
class Objective:
    """The distribution and the weights of noise levels.

    "uniform" draws every level of the table equally often; "logit_normal" draws t with logit(t) normal, of
    `logit_mean` and `logit_std` (Esser et al. 2024, arXiv:2403.03206, section 3.1). Only positions from `min_boundary`
    to `max_boundary` are drawn, and of these only the levels in `sigmas`: from the first sigma up to the second, which
    is not among them unless it is 1 (None: all). `shift` takes the place of the family's own (None), and 1 is none.
    "bell" weights as the schedule says, "none" all levels alike. "diffsynth" draws every level of DiffSynth-Studio's
    table for the family equally often, and weights them as its training does.
    """

    sampling: Sampling = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift: float | None = None
    min_boundary: float = 0.0
    max_boundary: float = 1.0
    weighting: Weighting = "bell"
    sigmas: tuple[float, float] | None = None

    def apply(self, scheduler: FlowMatchScheduler, family: Family) -> None:
        """Have `scheduler` make its training table as asked for, from the next time that it loads it.

        Raises UsageError if the table of `family` is to be DiffSynth-Studio's, and there is none.
        """
        if self.shift is not None:
            scheduler.training_mu = math.log(self.shift)
        self.check(family)
        scheduler.diffsynth_table = family.diffsynth_table if self.sampling == "diffsynth" else None

    def within(self, low: float | None, high: float | None) -> Objective:
        """Return it with other boundaries, of which None is as it is here."""
        return replace(
            self,
            min_boundary=self.min_boundary if low is None else low,
            max_boundary=self.max_boundary if high is None else high,
        )

    def check(self, family: Family) -> None:
        """Raise UsageError for levels that are not known for `family`."""
        if self.sampling == "diffsynth" and family.diffsynth_table is None:
            raise UsageError(
                f"--timestep-sampling diffsynth is given, but {family.title} is not trained by DiffSynth",
                hint="leave it out: the levels are then those that the model was published with",
            )

    def draw(self, scheduler: FlowMatchScheduler, count: int, seed: int | list[int | None] | None) -> Tensor:
        """Draw `count` timesteps from the scheduler's training table, (count,) float32.

        With seeds, one for each sample, a sample's timestep depends on its own seed alone; without, on torch's
        generator.
        """
        levels, places = scheduler.timesteps, self.places(scheduler)
        if not places:
            raise UsageError(
                f"no level lies between the timestep boundaries {self.min_boundary:g} and {self.max_boundary:g}"
                + ("" if self.sigmas is None else f" and the sigmas {self.sigmas[0]:g} and {self.sigmas[1]:g}"),
                hint="0 is noise and 1 the clean picture; leave some room between them",
            )
        seeds = seed if isinstance(seed, list) else [seed] * count
        return levels[torch.cat([self._pick(len(levels), places, _generator(each)) for each in seeds])]

    def places(self, scheduler: FlowMatchScheduler) -> range:
        """Return which places of the scheduler's training table can be drawn."""
        count = len(scheduler.timesteps)
        whole = int if self.sampling == "diffsynth" else round  # DiffSynth cuts the boundaries off
        first, last = whole(self.min_boundary * count), whole(self.max_boundary * count)
        if self.sigmas is not None:
            levels, (low, high) = scheduler.timesteps.double(), self.sigmas
            above = 0 if high >= 1 else int((levels >= 1000 * high).sum())  # the table goes down
            first, last = max(first, above), min(last, int((levels >= 1000 * low).sum()))
        return range(first, last)

    def weight(self, scheduler: FlowMatchScheduler, timestep: Tensor) -> Tensor:
        """Return how much the error at each timestep counts, (B,) float32."""
        if self.weighting == "none":
            return torch.ones_like(timestep, dtype=torch.float32)
        return scheduler.training_weight(timestep)

    def _pick(self, levels: int, places: range, generator: torch.Generator | None) -> Tensor:
        """Draw one of `places` of a table of `levels`, (1,) int64."""
        low, high = places.start, places.stop
        if self.sampling != "logit_normal":
            return torch.randint(low, high, (1,), generator=generator)
        normal = NormalDist(self.logit_mean, self.logit_std)
        least, most = (normal.cdf(_logit(1 - place / levels)) for place in (high, low))
        # By the inverse of the distribution function, so that a sample costs one draw within any boundaries.
        share = least + (most - least) * float(torch.rand(1, dtype=torch.float64, generator=generator))
        level = _logistic(normal.inv_cdf(share)) if 0 < share < 1 else share
        place = min(max(math.floor((1 - level) * levels), low), high - 1)
        return torch.tensor([place])


def choose_denoiser(
    objective: Objective, scheduler: FlowMatchScheduler, denoisers: Sequence[Denoiser], seed: int | None
) -> tuple[Denoiser, Objective]:
    """Choose one of `denoisers` for a micro-batch by its `seed`, and return it with the objective of its levels.

    Each is chosen as often as it has levels of the training table that `objective` can draw, so that with even draws
    every level is drawn as often as with one denoiser. Without a seed torch's generator decides.
    """
    each = [replace(objective, sigmas=(denoiser.low, denoiser.high)) for denoiser in denoisers]
    if len(denoisers) == 1:
        return denoisers[0], each[0]
    counts = [len(own.places(scheduler)) for own in each]
    total = sum(counts)
    if not total:
        return denoisers[0], each[0]  # of which a draw says that it has no level
    place = int(torch.randint(total, (1,))) if seed is None else derive_seed(seed, "denoiser") % total
    number = next(n for n in range(len(counts)) if place < sum(counts[: n + 1]))
    return denoisers[number], each[number]


def _logit(level: float) -> float:
    if level <= 0 or level >= 1:
        return math.copysign(math.inf, level - 0.5)
    return math.log(level / (1 - level))


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def _generator(seed: int | None) -> torch.Generator | None:
    return None if seed is None else torch.Generator().manual_seed(derive_seed(seed, "timestep"))
