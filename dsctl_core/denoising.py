"""Run the denoising loop: follow the velocity along the noise levels, at each level with the denoiser in charge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from dsctl_core.errors import UsageError
from dsctl_core.scheduler import FlowMatchScheduler
from dsctl_core.side_network import STEERED_BY
from dsctl_core.units import Inputs

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline

ProgressBar = Callable[[Iterable[Tensor]], Iterable[Tensor]]
CfgScale = float | Sequence[float]  # one for all denoisers, or one per denoiser, from the highest noise levels down
Step = Callable[[Tensor, Tensor], Tensor]  # (latents, timestep) -> latents at the next level


def run_step_directly(step: Step, latents: Tensor, timestep: Tensor) -> Tensor:
    """Run one denoising step without wrapping it: the default of `run_step`."""
    return step(latents, timestep)


def no_progress_bar(timesteps: Iterable[Tensor]) -> Iterable[Tensor]:
    """Return `timesteps` unchanged: the default progress bar, which shows nothing."""
    return timesteps


def cfg_scales(cfg_scale: CfgScale, denoisers: Sequence[str]) -> dict[str, float]:
    """Return the guidance scale of each denoiser by name.

    `cfg_scale` is one number for all denoisers, or a sequence with one number per denoiser. Raises UsageError when the
    length of the sequence is not the number of denoisers.
    """
    scales = [cfg_scale] * len(denoisers) if isinstance(cfg_scale, int | float) else list(cfg_scale)
    if len(scales) != len(denoisers):
        raise UsageError(
            f"{len(scales)} guidance scales for {len(denoisers)} denoisers ({', '.join(denoisers)})",
            hint="give one for all, or one for each, from the highest noise levels down",
        )
    return dict(zip(denoisers, scales, strict=True))


def denoise(
    pipe: BasePipeline,
    shared: Inputs,
    posi: Inputs,
    nega: Inputs,
    *,
    cfg_scale: CfgScale,
    progress_bar_cmd: ProgressBar,
    levels: FlowMatchScheduler,
    run_step: Callable[[Step, Tensor, Tensor], Tensor],
) -> Tensor:
    """Denoise `shared["latents"]` and return the clean latents, (B, C, h, w) or (B, C, T, h, w).

    This is the implementation of `BasePipeline.denoise`.

    Args:
        pipe: The pipeline with the denoisers.
        shared: Inputs of `model_fn` that do not depend on the prompt, with `latents` to start from.
        posi: Inputs of `model_fn` for the prompt.
        nega: Inputs of `model_fn` for the negative prompt; used where the guidance scale is not 1.
        cfg_scale: Guidance scale, for all denoisers or for each.
        progress_bar_cmd: Wraps the timesteps, as `tqdm` does.
        levels: The scheduler with the noise levels.
        run_step: Called as `run_step(step, latents, timestep)` for each step.
    """
    controls = [side.name for side in pipe.side_networks if side.control is not None]
    beside = (*pipe.beside_the_denoiser, *controls)
    pipe.load_models_to_device(beside)
    mask = shared.get("latents_mask")
    scales = cfg_scales(cfg_scale, [denoiser.name for denoiser in pipe.parts.denoisers])
    placed: str | None = None

    def step(latents: Tensor, timestep: Tensor) -> Tensor:
        nonlocal placed
        denoiser = pipe.parts.denoiser_at(float(timestep)).name
        if denoiser != placed:
            pipe.placement.use(pipe, denoiser, beside)
            placed = denoiser
        state = {"latents": latents, "timestep": timestep.to(latents.device), "denoiser": denoiser}
        velocity = pipe.call_model_fn(**{**shared, **posi, **state})
        if scales[denoiser] != 1:
            # Control networks read the prompt in both passes, as those of diffusers' pipelines do.
            unguided = pipe.call_model_fn(**{**shared, **nega, **state, STEERED_BY: posi})
            velocity = pipe.guide(velocity, unguided, scales[denoiser])
        if mask is not None:
            # The velocity of the straight line to the input latents, which reaches them at sigma = 0.
            home = (latents - shared["input_latents"]) / levels.noise_level(timestep).to(latents.device)
            velocity = mask * velocity + (1 - mask) * home
        return levels.step(velocity, timestep, latents)

    latents: Tensor = shared["latents"]
    for timestep in progress_bar_cmd(levels.timesteps):
        latents = run_step(step, latents, timestep)
    return latents
