"""Define WanPipeline (text, and given frames, to clips) and the `model_fn` that inference and training share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dsctl_core.errors import DsctlError
from dsctl_core.families.wan import units
from dsctl_core.families.wan.family import FAMILY, T2V, TI2V, TI2V_DEFAULTS
from dsctl_core.families.wan.latents import SPACE, SPACE_2_2, TILE_SIZE, TILE_STRIDE
from dsctl_core.media import Clip, VideoPipeline
from dsctl_core.media import units as shared_units
from dsctl_core.media.clip import Clips, frames_of
from dsctl_core.media.video import video_inputs
from dsctl_core.memory.quantize import compute_dtype
from dsctl_core.memory.recompute import set_checkpointing
from dsctl_core.pipeline import CfgScale, ProgressBar, no_progress_bar
from dsctl_core.readable import counted
from dsctl_core.units import Inputs


class WanPipeline(VideoPipeline):
    """Wan 2.1 and 2.2 (arXiv:2503.20314): a transformer on patches of VAE latents, with UMT5 as text encoder."""

    family = FAMILY
    latent_space = SPACE

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kind = self.parts.kind or T2V
        if self.kind == TI2V:
            self.latent_space = SPACE_2_2
            if self.defaults == self.family.defaults:  # of single components, which have no defaults of their own
                self.defaults = dict(TI2V_DEFAULTS)
        self.model_fn = model_fn_wan
        self.units = [
            shared_units.ShapeChecker(),
            shared_units.NoiseInitializer(),
            shared_units.InputVideoEmbedder(),
            shared_units.LatentsInitializer(),
            shared_units.InpaintMask(),
            units.ConditionEmbedder(),
            units.FirstFrameEmbedder(),
            units.ImageEmbedder(),
            units.PromptEmbedder(),
        ]

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] = "",
        cfg_scale: CfgScale | None = None,
        input_image: Image.Image | list[Image.Image] | None = None,
        end_image: Image.Image | list[Image.Image] | None = None,
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
            input_image: The first frame, or one per prompt, for models that take one.
            end_image: The last frame, or one per prompt, for models that take one.
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
            noise: Noise to use instead of drawing it.
            progress_bar_cmd: Wraps the timesteps, as `tqdm` does.
        """
        latents = self.generate(
            prompt=prompt,
            negative_prompt=negative_prompt,
            num_inference_steps=num_inference_steps,
            denoising_strength=denoising_strength,
            progress_bar_cmd=progress_bar_cmd,
            shared={
                "cfg_scale": cfg_scale,
                "input_image": input_image,
                "end_image": end_image,
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
        clips = self.decode_latents(latents, tiled, tile_size, tile_stride, fps)
        return clips if isinstance(prompt, list) else clips[0]

    def denoise(self, shared: Inputs, posi: Inputs, nega: Inputs, **settings: Any) -> Tensor:
        """Denoise as every pipeline does, and put a given first frame in its place."""
        latents = super().denoise(shared, posi, nega, **settings)
        return with_given(latents, shared.get("first_latents"), shared.get("given_frames"))

    def row_inputs(self, rows: Sequence[Inputs], extra_inputs: Sequence[str] = ()) -> tuple[Inputs, Inputs, Inputs]:
        """Return (shared, posi, nega) from dataset rows, with the given frames that the model needs."""
        needed = self.family.frame_inputs(self.parts).needed
        return super().row_inputs(rows, tuple(dict.fromkeys((*needed, *extra_inputs))))

    @classmethod
    def inputs_from_rows(
        cls, rows: Sequence[Inputs], extra_inputs: Sequence[str] = ()
    ) -> tuple[Inputs, Inputs, Inputs]:
        """Return the inputs (shared, posi, nega) of one training batch from dataset rows.

        A row has `video`, or `image`, of one size and number of frames in all rows, `prompt`, and optionally `seed`.
        With the extra input `input_image` the first frame is given to the model: the column of this name if there is
        one, whose cells may be empty for rows without, else that of the clip. `end_image` is the last frame likewise.
        """
        FAMILY.check_extra_inputs(extra_inputs)
        shared, posi, nega = video_inputs(rows)
        for name, number in (("input_image", 0), ("end_image", -1)):
            if name in extra_inputs:
                clips = zip(rows, shared["input_video"], strict=True)
                shared[name] = [_picture(row, name) if name in row else clip[number] for row, clip in clips]
        return shared, posi, nega


def _picture(row: Inputs, name: str) -> Image.Image | None:
    """Return the picture in the column `name` of a row, which may be a clip of one frame, or None."""
    frames = frames_of(row[name])
    if len(frames) != 1 or not isinstance(frames[0], Image.Image | None):
        raise DsctlError(
            f"row {row.get('_row', '?')} has {name}, but not as one picture",
            hint=f"put the file name of a picture there, and {name} into --data-file-keys; or leave the column out",
        )
    return frames[0]


def with_given(latents: Tensor, first: Tensor | None, given: Tensor | None) -> Tensor:
    """Return `latents` (B, c, t, h, w) with the latents `first` (B, c, 1, h, w) in the frames that are `given`."""
    return latents if first is None or given is None else torch.where(given, first.to(latents), latents)


def model_fn_wan(
    dit: Any,
    latents: Tensor,
    timestep: Tensor,
    prompt_embeds: Tensor,
    prompt_embeds_mask: Tensor | None = None,
    condition: Tensor | None = None,
    image_embeds: Tensor | None = None,
    first_latents: Tensor | None = None,
    given_frames: Tensor | None = None,
    use_gradient_checkpointing: bool = False,
    use_gradient_checkpointing_offload: bool = False,
) -> Tensor:
    """Return the velocity that the transformer predicts, with the shape and dtype of `latents`.

    Args:
        dit: The transformer.
        latents: Noisy latents (B, c, t, h, w).
        timestep: (B,) or (), in [0, 1000].
        prompt_embeds: Text embeddings (B or 1, T, D).
        prompt_embeds_mask: (B or 1, T), False for padding, which counts as zeros; None for no padding.
        condition: Mask and latents of given frames (B or 1, 20, t, h, w), further input channels.
        image_embeds: The given frames as the image encoder sees them (B or 1, frames, 257, 1280).
        first_latents: Latents of the first frame (B or 1, c, 1, h, w).
        given_frames: (B or 1, 1, t, 1, 1), True for frames that `first_latents` replaces: their noise level is 0.
        use_gradient_checkpointing: Recompute activations in the backward pass.
        use_gradient_checkpointing_offload: Also keep the saved inputs of blocks in host memory.
    """
    set_checkpointing(dit, use_gradient_checkpointing, use_gradient_checkpointing_offload)
    batch, _, frames, height, width = latents.shape
    dtype = compute_dtype(dit, dit.proj_out.weight)
    timestep = timestep.expand(batch)
    hidden = with_given(latents, first_latents, given_frames)
    if given_frames is not None:
        levels = timestep.view(-1, 1, 1, 1, 1) * ~given_frames  # (B, 1, t, 1, 1)
        timestep = levels.expand(-1, 1, frames, height // 2, width // 2).flatten(1)  # one for each token
    if condition is not None:
        hidden = torch.cat([hidden, condition.to(hidden).expand(batch, -1, -1, -1, -1)], dim=1)
    _check_inputs(dit, hidden.shape[1], image_embeds)
    velocity = dit(
        hidden_states=hidden.to(dtype),
        timestep=timestep,
        encoder_hidden_states=units.padded_text(prompt_embeds, prompt_embeds_mask).to(dtype).expand(batch, -1, -1),
        # The transformer takes two frames of a sample as two entries of the batch.
        encoder_hidden_states_image=None
        if image_embeds is None
        else image_embeds.to(dtype).expand(batch, -1, -1, -1).flatten(0, 1),
        return_dict=False,
    )[0]
    return velocity.to(latents.dtype)


def _check_inputs(dit: Any, channels: int, image_embeds: Tensor | None) -> None:
    """Raise DsctlError for inputs that do not fit the transformer, which itself fails on shapes."""
    if channels != dit.config.in_channels:
        raise DsctlError(
            f"the transformer takes {dit.config.in_channels} channels, not {channels}",
            hint="give a model folder with its model_index.json, or all components of one model",
        )
    wanted = 0 if dit.config.image_dim is None else 1 if dit.config.pos_embed_seq_len is None else 2
    given = 0 if image_embeds is None else image_embeds.shape[1]
    if given != wanted:
        raise DsctlError(
            f"the transformer reads {counted(wanted, 'frame')} through the image encoder, but {given} are given",
            hint="leave the end_image out" if given > wanted else "add the image encoder to the components",
        )
