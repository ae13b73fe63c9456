"""DawnPipeline: text, and maybe a first picture, to clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from dsctl_core.families.dawn import units
from dsctl_core.families.dawn.family import FAMILY
from dsctl_core.families.dawn.latents import SPACE
from PIL import Image
from torch import Tensor, nn

from dsctl_core.control import ControlUse, ResidualControl, control_network
from dsctl_core.control.units import ControlImageEmbedder
from dsctl_core.media import Clip, VideoPipeline
from dsctl_core.media import units as shared_units
from dsctl_core.media.pipeline import for_each_prompt
from dsctl_core.media.video import video_inputs
from dsctl_core.memory.quantize import compute_dtype
from dsctl_core.memory.recompute import set_checkpointing
from dsctl_core.pipeline import CfgScale, ProgressBar, no_progress_bar
from dsctl_core.side_network import SideNetwork
from dsctl_core.units import Inputs


class DawnPipeline(VideoPipeline):
    """Clips of 4n + 1 frames."""

    family = FAMILY
    latent_space = SPACE

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_fn = model_fn_dawn
        self.units = [
            shared_units.ShapeChecker(),
            shared_units.NoiseInitializer(),
            shared_units.InputVideoEmbedder(),
            shared_units.LatentsInitializer(),
            shared_units.InpaintMask(),
            units.FirstImageEmbedder(),
            units.FirstFrameMask(),
            units.PromptEmbedder(),
        ]

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] = "",
        cfg_scale: CfgScale = 2.0,
        input_video: Any = None,
        first_image: Image.Image | None = None,
        denoising_strength: float = 1.0,
        inpaint_mask: Any = None,
        height: int = 32,
        width: int = 32,
        num_frames: int = 5,
        fps: float | None = None,
        seed: int | list[int] | None = None,
        rand_device: str = "cpu",
        num_inference_steps: int = 4,
        tiled: bool = False,
        noise: Tensor | None = None,
        controls: Mapping[str, ControlUse] | None = None,
        control_inputs: Mapping[str, Any] | None = None,
        progress_bar_cmd: ProgressBar = no_progress_bar,
    ) -> Clip | list[Clip]:
        """Make a clip of `prompt`; of a list of prompts a list."""
        latents = self.generate(
            prompt=prompt,
            negative_prompt=negative_prompt,
            num_inference_steps=num_inference_steps,
            denoising_strength=denoising_strength,
            progress_bar_cmd=progress_bar_cmd,
            shared={
                "cfg_scale": cfg_scale,
                "input_video": input_video,
                "first_image": None if first_image is None else [first_image],
                "inpaint_mask": inpaint_mask,
                "height": height,
                "width": width,
                "num_frames": num_frames,
                "seed": for_each_prompt("seed", seed, prompt),
                "rand_device": rand_device,
                "noise": noise,
                "controls": controls,
                **(control_inputs or {}),
            },
        )
        clips = self.decode_latents(latents, tiled, fps=fps)
        return clips if isinstance(prompt, list) else clips[0]

    @classmethod
    def inputs_from_rows(
        cls, rows: Sequence[Inputs], extra_inputs: Sequence[str] = ()
    ) -> tuple[Inputs, Inputs, Inputs]:
        """Turn rows into inputs; with the extra input `first_image` the first frame is given to the model."""
        shared, posi, nega = video_inputs(rows)
        if "first_image" in extra_inputs:
            shared["first_image"] = [clip[0] for clip in shared["input_video"]]
        return shared, posi, nega


def model_fn_dawn(
    dit: Any,
    latents: Tensor,
    timestep: Tensor,
    prompt_embeds: Tensor,
    image_embeds: Tensor | None = None,
    controlnet_block_samples: list[Tensor] | None = None,
    use_gradient_checkpointing: bool = False,
    use_gradient_checkpointing_offload: bool = False,
) -> Tensor:
    """Return the velocity of `latents` (B, 16, t, h, w) at `timestep` (B,) or ()."""
    set_checkpointing(dit, use_gradient_checkpointing, use_gradient_checkpointing_offload)
    dtype = compute_dtype(dit, dit.proj_out.weight)
    velocity = dit(
        latents.to(dtype),
        timestep.expand(len(latents)),
        prompt_embeds.to(dtype).expand(len(latents), -1, -1),
        None if image_embeds is None else image_embeds.to(dtype),
        controlnet_block_samples,
    )
    return velocity.to(latents.dtype)


def residuals(network: nn.Module, denoiser: nn.Module, control: Tensor, latents: Tensor) -> Mapping[str, list[Tensor]]:
    """Return the residuals of a DawnControl."""
    return {"controlnet_block_samples": network(control, latents)}


def dawn_control(name: str) -> SideNetwork:
    """Return how a DawnControl called `name` stands beside the denoisers."""
    return control_network(name, ResidualControl(name, residuals), [ControlImageEmbedder(name)], [f"{name}_image"])
