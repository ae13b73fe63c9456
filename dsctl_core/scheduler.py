"""Implement the flow-matching schedule: noise levels for sampling and training, adding noise, and the steps.

Legend: sigma in [0, 1] is the noise level, timestep = 1000 * sigma, x_sigma = (1 - sigma) * x0 + sigma * noise, and
velocity = dx/dsigma = noise - x0 (Lipman et al. 2022, arXiv:2210.02747).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dsctl_core.errors import UsageError
from dsctl_core.family import DiffSynthTable, Schedule
from dsctl_core.options.base import Solver

TRAINING_LEVELS = 1000  # noise levels that training draws from, as every published flow-matching model has
DEFAULT_STEPS = 100
UNIPC_LAST = 1 / TRAINING_LEVELS  # the level before the shift at which the grid of diffusers' UniPC ends


class FlowMatchScheduler:
    """Noise levels from high to low: `sigmas` and `timesteps`, both (n,) float32.

    `training` is whether the loaded table is the one to draw training levels from, or the one to sample along.
    `training_mu` is the exponent of the shift of the training table. With a `diffsynth_table`, the training table has
    the levels and weights of DiffSynth-Studio instead.
    """

    sigmas: Tensor
    timesteps: Tensor
    training: bool
    training_mu: float
    diffsynth_table: DiffSynthTable | None

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.training_mu = schedule.training_mu
        self.diffsynth_table = None
        self._unipc: Any = None  # diffusers' scheduler, which keeps the model outputs of earlier steps
        self.set_timesteps()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        denoising_strength: float = 1.0,
        dynamic_shift_len: int | None = None,
        training: bool = False,
        solver: Solver = "euler",
    ) -> None:
        """Compute the table of noise levels, and set `sigmas` and `timesteps`.

        `num_inference_steps` is the number of levels (None: 100 for sampling, 1000 for training).
        `denoising_strength` is the level at which sampling starts, before the shift. `dynamic_shift_len` is the number
        of image tokens that determines the shift, together with the number of levels if the schedule has a
        `sampling_mu` (None: the shift of training). `solver` chooses the steps: those of Euler need no other step, and
        can be repeated; UniPC (arXiv:2302.04867, order 2) is diffusers', with its levels and its whole timesteps.
        """
        count = (
            num_inference_steps if num_inference_steps is not None else TRAINING_LEVELS if training else DEFAULT_STEPS
        )
        if count < 1:
            raise UsageError(f"the number of inference steps must be at least 1, not {count}", hint="try 20")
        if not 0 < denoising_strength <= 1:
            raise UsageError(
                f"the denoising strength must be above 0 and at most 1, not {denoising_strength}",
                hint="1 ignores the input image, 0.3 changes it a little",
            )
        self.training = training
        fixed = self.training_mu if training else self.schedule.training_mu
        mu = fixed if dynamic_shift_len is None else self._mu(dynamic_shift_len, count)
        if training and self.diffsynth_table is not None:
            self.sigmas = diffsynth_levels(self.diffsynth_table)
            self._diffsynth_weights = diffsynth_weights(self.sigmas)
        elif training:
            # Mid-points of equal bins exclude 0 and 1, where the loss weight is 0 and a draw would have no effect.
            # The table is not stretched: shift_terminal is where the *last sampling step* begins, so that this step
            # still removes noise. It is not a property of the model, which is trained at all levels.
            grid = (torch.arange(count, 0, -1, dtype=torch.float64) - 0.5) / count
            self.sigmas = self._shift(grid.float(), mu)
            self._weight_mean = self._bell(self.sigmas.double()).mean().item()
        else:
            grid = torch.linspace(denoising_strength, 0, count + 1, dtype=torch.float64)[:-1]
            self.sigmas = self._stretch(self._shift(grid.float(), mu))
        self.timesteps, self._unipc = self.sigmas * 1000, None
        if solver == "unipc" and not training:
            self._unipc = unipc(self._unipc_levels(count, denoising_strength, mu))
            self.sigmas, self.timesteps = self._unipc.sigmas[:-1], self._unipc.timesteps.float()

    def noise_level(self, timestep: Tensor) -> Tensor:
        """Return the sigma at which the step at `timestep`, the next of the table, begins."""
        return timestep / 1000 if self._unipc is None else self.sigmas[self._unipc.step_index or 0]

    def add_noise(self, original: Tensor, noise: Tensor, timestep: Tensor | float) -> Tensor:
        """Blend clean latents with noise: `(1 - sigma) * original + sigma * noise`.

        `original` and `noise` are (B, ...); `timestep` is (B,) or a scalar, any value in [0, 1000]. Computed in
        float32; the result has the dtype of `original`.
        """
        sigma = self._sigma(timestep, original)
        return ((1 - sigma) * original.float() + sigma * noise.float()).to(original.dtype)

    def step(self, model_output: Tensor, timestep: Tensor | float, sample: Tensor, to_final: bool = False) -> Tensor:
        """Return the sample at the next noise level of the table, by one step; the level after the last is 0.

        `model_output` is the velocity; it and `sample` are (B, ...). `timestep` is a value of the table; for UniPC it
        must be the next one. With `to_final` an Euler step goes directly to level 0. Computed in float32; the result
        has the dtype of `sample`.
        """
        if self._unipc is not None:
            return self._unipc.step(model_output.float(), timestep, sample.float()).prev_sample.to(sample.dtype)
        at = torch.as_tensor(timestep, dtype=torch.float32).cpu().flatten()[0]
        index = int((self.timesteps - at).abs().argmin())
        last = to_final or index + 1 == len(self.sigmas)
        delta = (0.0 if last else self.sigmas[index + 1]) - self.sigmas[index]
        return (sample.float() + delta.to(sample.device) * model_output.float()).to(sample.dtype)

    def training_target(self, sample: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Return the training target: the velocity `noise - sample`, which does not depend on `timestep`."""
        return noise - sample

    def training_weight(self, timestep: Tensor) -> Tensor:
        """Return the loss weight of each timestep, (B,) float32: a bell curve with mean 1 over the training table.

        exp(-2 u^2) with u = sigma - 1/2, minus its value at the ends, is proportional to exp(2 sigma (1 - sigma)) - 1.
        The weight is zero only at sigma 0 and 1, and this form is numerically accurate near them. With a
        `diffsynth_table` it is the weight of the nearest level there.
        """
        if not self.training:
            raise RuntimeError("training_weight needs set_timesteps(training=True) first")
        if self.diffsynth_table is not None:
            levels = self.timesteps.to(timestep.device)
            nearest = (levels - timestep.float().reshape(-1, 1)).abs().argmin(dim=1)
            return self._diffsynth_weights.to(timestep.device)[nearest].reshape(timestep.shape)
        return self._bell(timestep.float() / 1000) / self._weight_mean

    @staticmethod
    def _bell(sigma: Tensor) -> Tensor:
        return torch.expm1(2 * sigma * (1 - sigma))

    @staticmethod
    def _sigma(timestep: Tensor | float, like: Tensor) -> Tensor:
        """Return sigma in float32, with the shape (B, 1, ...) that broadcasts over the samples of `like`."""
        sigma = torch.as_tensor(timestep, dtype=torch.float32, device=like.device) / 1000
        return sigma.reshape(-1, *[1] * (like.ndim - 1))

    def _mu(self, image_tokens: int, steps: int) -> float:
        s = self.schedule
        if s.sampling_mu is not None:
            found = s.sampling_mu(image_tokens, steps)
        else:
            slope = (s.max_shift - s.base_shift) / (s.max_image_seq_len - s.base_image_seq_len)
            found = image_tokens * slope + (s.base_shift - slope * s.base_image_seq_len)
        return math.log(found) if s.linear_shift else found

    def _unipc_levels(self, count: int, strength: float, mu: float) -> Tensor:
        """Return the levels (count,) float64 of diffusers' UniPC, from those of `strength` down; at 1 they are its own.

        Raises UsageError for a strength below its last level.
        """
        if strength <= UNIPC_LAST:
            raise UsageError(f"the levels of unipc end at {UNIPC_LAST:g}, above {strength:g}", hint="use euler")
        grid = torch.linspace(strength, UNIPC_LAST, count + 1, dtype=torch.float64)[:-1]
        # Its timesteps are rounded down to whole numbers, so the shift must not be off in its last digits.
        shift = round(math.exp(mu), 12)
        return self._stretch(shift * grid / (1 + (shift - 1) * grid))

    @staticmethod
    def _shift(sigmas: Tensor, mu: float) -> Tensor:
        """Shift the levels towards more noise, as larger images need (Esser et al. 2024, arXiv:2403.03206, eq. 23)."""
        # Tensor by tensor: torch computes `number / tensor` as a product with the reciprocal, which rounds differently.
        exp_mu = torch.tensor(math.exp(mu), dtype=torch.float32)
        return exp_mu / (exp_mu + (1 / sigmas - 1))

    def _stretch(self, sigmas: Tensor) -> Tensor:
        """Stretch the levels so that the last is `shift_terminal` and the first is unchanged.

        The first level is 1 unless the denoising strength is below 1; keeping it makes the strength independent of the
        number of steps. A single level is returned unchanged.
        """
        terminal, first = self.schedule.shift_terminal, sigmas[0].item()
        if terminal is None or len(sigmas) == 1 or first <= terminal:
            return sigmas
        below = first - sigmas
        return first - below / (below[-1] / (first - terminal))


def unipc(sigmas: Tensor) -> Any:
    """Return diffusers' UniPC scheduler at the levels `sigmas` (n,) float64, ready for the first step."""
    from diffusers import UniPCMultistepScheduler

    made: Any = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)
    made.set_timesteps(sigmas=sigmas.numpy())
    made.set_begin_index(0)
    return made


def diffsynth_levels(table: DiffSynthTable) -> Tensor:
    """Return the noise levels of `table`, (1000,) float32, with each operation as DiffSynth-Studio rounds it."""
    count = TRAINING_LEVELS
    grid = torch.linspace(1, 0, count + 1)[:-1] if table.last is None else torch.linspace(1, table.last, count)
    factor = math.exp(table.mu)
    sigmas = factor / (factor + (1 / grid - 1))
    if table.terminal is None:
        return sigmas
    below = 1 - sigmas
    return 1 - below / (below[-1] / (1 - table.terminal))


def diffsynth_weights(sigmas: Tensor) -> Tensor:
    """Return the loss weights of DiffSynth-Studio's 1000 levels: a bell curve, 0 at the lowest, with mean 1."""
    bell = torch.exp(-2 * ((sigmas * 1000 - 500) / 1000) ** 2)
    shown = bell - bell.min()
    return shown * (len(sigmas) / shown.sum())
