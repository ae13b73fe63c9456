"""Define WanVacePipeline (text and what is to be followed, to clips) and its `model_fn`, also used in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.wan.latents import TILE_SIZE, TILE_STRIDE
from dsctl_core.families.wan.pipeline import WanPipeline
from dsctl_core.families.wan.units import PromptEmbedder, padded_text
from dsctl_core.families.wan_vace import units
from dsctl_core.families.wan_vace.context import Given
from dsctl_core.families.wan_vace.family import FAMILY
from dsctl_core.media import Clip
from dsctl_core.media import units as shared_units
from dsctl_core.media.clip import Clips
from dsctl_core.media.video import video_inputs
from dsctl_core.memory.quantize import compute_dtype
from dsctl_core.memory.recompute import set_checkpointing
from dsctl_core.pipeline import CfgScale, ProgressBar, no_progress_bar
from dsctl_core.units import Inputs

Scale = float | Sequence[float]  # how much the context counts: one number, or one for each vace block


class WanVacePipeline(WanPipeline):
    """Wan VACE (arXiv:2503.07598): Wan with blocks that follow a control video, its mask and reference images.

    Reference images are frames in front of the clip, in the context as in the latents, and are cut off in the end.
    """

    family = FAMILY

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_fn = model_fn_wan_vace
        self.units = [
            shared_units.ShapeChecker(),
            units.FollowedChecker(),
            units.VaceEmbedder(),
            shared_units.NoiseInitializer(),
            units.InputVideoEmbedder(),
            shared_units.LatentsInitializer(),
            shared_units.InpaintMask(),
            PromptEmbedder(),
        ]

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] = "",
        cfg_scale: CfgScale | None = None,
        vace_video: Given = None,
        vace_video_mask: Given = None,
        vace_reference_image: Given = None,
        vace_scale: Scale = 1.0,
        input_video: Clips | None = None,
        denoising_strength: float = 1.0,
        inpaint_mask: Image.Image | list[Image.Image] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        fps: float | None = None,
        seed: int | list[int] | None = None,
        rand_device: torch.device | str = "cpu",
        num_inference_steps: int | None = None,
        tiled: bool = False,
        tile_size: int = TILE_SIZE,
        tile_stride: int = TILE_STRIDE,
        noise: Tensor | None = None,
        progress_bar_cmd: ProgressBar = no_progress_bar,
    ) -> Clip | list[Clip]:
        """Generate a clip for `prompt`, or a list of clips for a list of prompts, equal to those generated singly.

        Args:
            prompt: A prompt, or several.
            negative_prompt: A negative prompt, or one per prompt; unused if `cfg_scale` is 1.
            cfg_scale: Scale of classifier-free guidance, one for all denoisers or one for each; 1 disables it
                (None: the model's own).
            vace_video: The control video, or one per prompt: as many frames as the clip, of its size.
            vace_video_mask: The mask of the control video, or one per prompt, a clip like it or a picture for all
                frames: white is generated after the video, black is kept from it.
            vace_reference_image: Reference images in their order, of any size, or a list of them per prompt.
            vace_scale: How much all of this counts: one number, or one for each vace block; 0 is a clip from text.
            input_video: Clip to start from, or one per prompt.
            denoising_strength: Noise level at which denoising of `input_video` starts, before the shift.
            inpaint_mask: Mask of `input_video`, or one per frame: white is generated, black is kept.
            height: Height in pixels (None: the model's own).
            width: Width in pixels (None: the model's own).
            num_frames: Number of frames, 4n + 1 (None: the model's own).
            fps: Frame rate of the clip in frames per second (None: the model's own); it changes no frame.
            seed: A seed for all prompts, or one per prompt.
            rand_device: Device of the random generator.
            num_inference_steps: Number of denoising steps (None: the model's own).
            tiled: Whether the VAE works in tiles, which needs less memory.
            tile_size: Size of a tile in pixels.
            tile_stride: Distance of tiles in pixels.
            noise: Noise to use instead of drawing it, with the reference frames in front.
            progress_bar_cmd: Wraps the timesteps, as `tqdm` does.
        """
        for name in self.in_iteration_models:
            if name in self.components:  # where only prompts are encoded, none is
                layer_scales(self.component(name), vace_scale)
        latents = self.generate(
            prompt=prompt,
            negative_prompt=negative_prompt,
            num_inference_steps=num_inference_steps,
            denoising_strength=denoising_strength,
            progress_bar_cmd=progress_bar_cmd,
            shared={
                "cfg_scale": cfg_scale,
                "vace_video": vace_video,
                "vace_video_mask": vace_video_mask,
                "vace_reference_image": vace_reference_image,
                "vace_scale": vace_scale,
                "input_video": input_video,
                "inpaint_mask": inpaint_mask,
                "height": height,
                "width": width,
                "num_frames": num_frames,
                "seed": seed,
                "rand_device": rand_device,
                "tiled": tiled,
                "tile_size": tile_size,
                "tile_stride": tile_stride,
                "noise": noise,
            },
        )
        own = self.latent_space.latent_frames(self.default("num_frames", num_frames))
        clips = self.decode_latents(latents[:, :, latents.shape[2] - own :], tiled, tile_size, tile_stride, fps)
        return clips if isinstance(prompt, list) else clips[0]

    @classmethod
    def inputs_from_rows(
        cls, rows: Sequence[Inputs], extra_inputs: Sequence[str] = ()
    ) -> tuple[Inputs, Inputs, Inputs]:
        """Return the inputs (shared, posi, nega) of one training batch from dataset rows.

        A row has `video`, or `image`, of one size and number of frames in all rows, `prompt`, and optionally `seed`.
        The extra inputs `vace_video`, `vace_video_mask` and `vace_reference_image` are columns of frames, or of
        pictures, whose cells may be empty.
        """
        FAMILY.check_extra_inputs(extra_inputs)
        shared, posi, nega = video_inputs(rows)
        return {**shared, **{name: [_cell(row, name) for row in rows] for name in extra_inputs}}, posi, nega


def _cell(row: Inputs, name: str) -> Any:
    """Return the frames or pictures in the column `name` of a row, None for an empty cell."""
    if name not in row:
        raise DsctlError(
            f"row {row.get('_row', '?')} has no {name!r}",
            hint=f"add the column and name it in --data-file-keys, or leave {name} out of --extra-inputs",
        )
    return row[name]


def layer_scales(dit: Any, scale: Scale) -> list[float]:
    """Return the scale of each vace block of `dit`; raise UsageError for another number of them than of blocks."""
    count = len(dit.config.vace_layers)
    scales = [float(scale)] * count if isinstance(scale, int | float) else [float(each) for each in scale]
    if len(scales) == 1:
        return scales * count
    if len(scales) != count:
        raise UsageError(
            f"{len(scales)} vace scales for {count} vace blocks",
            hint=f"give one for all, or {count}, one for each block",
        )
    return scales


def model_fn_wan_vace(
    dit: Any,
    latents: Tensor,
    timestep: Tensor,
    prompt_embeds: Tensor,
    vace_latents: Tensor,
    vace_mask: Tensor,
    prompt_embeds_mask: Tensor | None = None,
    vace_scale: Scale = 1.0,
    use_gradient_checkpointing: bool = False,
    use_gradient_checkpointing_offload: bool = False,
) -> Tensor:
    """Return the velocity that the transformer predicts, with the shape and dtype of `latents`.

    Args:
        dit: The transformer.
        latents: Noisy latents (B, 16, n + t, h, w), with n reference frames in front.
        timestep: (B,) or (), in [0, 1000].
        prompt_embeds: Text embeddings (B or 1, T, D).
        vace_latents: Latents of what is followed (B or 1, 32, n + t, h, w).
        vace_mask: Pixels of the mask for each latent (B or 1, 64, n + t, h, w) uint8, 255 for white.
        prompt_embeds_mask: (B or 1, T), False for padding, which counts as zeros; None for no padding.
        vace_scale: How much what is followed counts: one number, or one for each vace block.
        use_gradient_checkpointing: Recompute activations in the backward pass.
        use_gradient_checkpointing_offload: Also keep the saved inputs of blocks in host memory.
    """
    set_checkpointing(dit, use_gradient_checkpointing, use_gradient_checkpointing_offload)
    batch, dtype = len(latents), compute_dtype(dit, dit.proj_out.weight)
    context = torch.cat([vace_latents.to(latents), vace_mask.to(latents) / 255], dim=1).to(dtype)
    _check_inputs(dit, latents, context)
    velocity = dit(
        hidden_states=latents.to(dtype),
        timestep=timestep.expand(batch),
        encoder_hidden_states=padded_text(prompt_embeds, prompt_embeds_mask).to(dtype).expand(batch, -1, -1),
        control_hidden_states=context.expand(batch, -1, -1, -1, -1),
        control_hidden_states_scale=context.new_tensor(layer_scales(dit, vace_scale)),
        return_dict=False,
    )[0]
    return velocity.to(latents.dtype)


def _check_inputs(dit: Any, latents: Tensor, context: Tensor) -> None:
    """Raise DsctlError for inputs that do not fit the transformer, which itself fails on shapes."""
    given, taken = (latents.shape[1], context.shape[1]), (dit.config.in_channels, dit.config.vace_in_channels)
    if given != taken:
        raise DsctlError(
            f"the transformer takes {taken[0]} channels and follows {taken[1]}, not {given[0]} and {given[1]}",
            hint="give a model folder with its model_index.json, or all components of one model",
        )
    if latents.shape[2:] != context.shape[2:]:
        raise DsctlError(
            f"the latents are {tuple(latents.shape[2:])}, but what they follow is {tuple(context.shape[2:])}",
            hint="give the noise as many reference frames in front",
        )
