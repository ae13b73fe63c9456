"""Define Flux1Pipeline (text to image, image to image, inpainting, editing) and the `model_fn` shared with training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dsctl_core.control import ControlUse
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.flux1 import units
from dsctl_core.families.flux1.attention import attention_kwargs_of
from dsctl_core.families.flux1.control import residuals_of
from dsctl_core.families.flux1.family import FAMILY, KONTEXT_SIZES, SIZES, guidance_of, is_fill, takes_references
from dsctl_core.families.flux1.latents import SPACE, TILE_SIZE, TILE_STRIDE, pack, places, unpack
from dsctl_core.media import PicturePipeline
from dsctl_core.media import units as picture_units
from dsctl_core.media.kv_cache import KvCache
from dsctl_core.media.pipeline import picture_from_row, picture_inputs, reference_inputs
from dsctl_core.media.references import EditImageEmbedder, Pictures
from dsctl_core.memory.quantize import compute_dtype
from dsctl_core.memory.recompute import set_checkpointing
from dsctl_core.pipeline import ProgressBar, no_progress_bar
from dsctl_core.units import Inputs

TRAINING_GUIDANCE = 1.0  # for a network with embedded guidance: 1 is the distribution of the data


class Flux1Pipeline(PicturePipeline):
    """FLUX.1 (https://github.com/black-forest-labs/flux): a transformer on VAE latents, with CLIP and T5 for prompts.

    Kontext (arXiv:2506.15742) also reads the tokens of reference images, with position ids of their own, and Fill a
    masked image and its mask in addition to each noisy token.
    """

    family = FAMILY
    latent_space = SPACE

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_fn = model_fn_flux1
        sizes = self.parts.settings.get(SIZES, KONTEXT_SIZES)
        fitted = partial(units.fitted, sizes=sizes) if takes_references(self.parts) else units.refused
        self.units = [
            picture_units.ShapeChecker(),
            picture_units.NoiseInitializer(),
            picture_units.InputImageEmbedder(),
            EditImageEmbedder(fitted, pack),
            picture_units.LatentsInitializer(),
            units.FillEmbedder() if is_fill(self.parts) else picture_units.InpaintMask(),
            units.PromptEmbedder(),
        ]

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] = "",
        cfg_scale: float | None = None,
        embedded_guidance: float | None = None,
        edit_image: Pictures | None = None,
        input_image: Image.Image | list[Image.Image] | None = None,
        denoising_strength: float = 1.0,
        inpaint_mask: Image.Image | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int | list[int] | None = None,
        rand_device: torch.device | str = "cpu",
        num_inference_steps: int | None = None,
        tiled: bool = False,
        tile_size: int = TILE_SIZE,
        tile_stride: int = TILE_STRIDE,
        noise: Tensor | None = None,
        progress_bar_cmd: ProgressBar = no_progress_bar,
        *,
        control_inputs: Mapping[str, Any] | None = None,
        controls: Mapping[str, ControlUse] | None = None,
    ) -> Image.Image | list[Image.Image]:
        """Generate an image for `prompt`, or a list of images for a list of prompts, equal to those generated singly.

        Args:
            prompt: A prompt, or several.
            negative_prompt: A negative prompt, or one per prompt; unused if `cfg_scale` is 1.
            cfg_scale: Scale of classifier-free guidance; 1 disables it (None: the model's own).
            embedded_guidance: Guidance for networks that have it as an input (None: that of the model).
            edit_image: For Kontext, a reference image, a list of them for all prompts, or a list per prompt.
            input_image: Image to start from, or one per prompt; for Fill, the image to fill.
            denoising_strength: Noise level at which denoising of `input_image` starts, before the shift.
            inpaint_mask: Mask of `input_image`: white is generated, black is kept.
            height: Height in pixels (None: the model's own).
            width: Width in pixels (None: the model's own).
            seed: A seed for all prompts, or one per prompt.
            rand_device: Device of the random generator.
            num_inference_steps: Number of denoising steps (None: the model's own).
            tiled: Whether the VAE works in tiles, which needs less memory.
            tile_size: Size of a tile in pixels.
            tile_stride: Distance of tiles in pixels.
            noise: Noise to use instead of drawing it.
            progress_bar_cmd: Wraps the timesteps, as `tqdm` does.
            control_inputs: Inputs of the control networks of the pipeline by name, such as `control_image`.
            controls: Scale, range and mode of control networks by name (None: as they were loaded).
        """
        return self.draw(
            prompt=prompt,
            negative_prompt=negative_prompt,
            num_inference_steps=num_inference_steps,
            denoising_strength=denoising_strength,
            progress_bar_cmd=progress_bar_cmd,
            shared={
                "cfg_scale": cfg_scale,
                "embedded_guidance": self.guidance(embedded_guidance),
                "edit_image": edit_image,
                "input_image": input_image,
                "inpaint_mask": inpaint_mask,
                "height": height,
                "width": width,
                "seed": seed,
                "rand_device": rand_device,
                "tiled": tiled,
                "tile_size": tile_size,
                "tile_stride": tile_stride,
                "noise": noise,
                **self.steered(control_inputs, controls),
            },
        )

    def guidance(self, asked: float | None) -> float | None:
        """Return the embedded guidance: `asked` or the default, or None for a network that has no such input."""
        return self.embedded_guidance(asked, guidance_of(self.parts))

    def row_inputs(self, rows: Sequence[Inputs], extra_inputs: Sequence[str] = ()) -> tuple[Inputs, Inputs, Inputs]:
        """Return the inputs of dataset rows; raise UsageError for masks that would have no effect on training."""
        if "inpaint_mask" in extra_inputs and not is_fill(self.parts):
            raise UsageError(
                "these weights do not read an inpaint_mask, so it has no effect on training",
                hint="leave it out of --extra-inputs, or train flux1-fill-dev",
            )
        return super().row_inputs(rows, extra_inputs)

    @classmethod
    def inputs_from_rows(
        cls, rows: Sequence[Inputs], extra_inputs: Sequence[str] = ()
    ) -> tuple[Inputs, Inputs, Inputs]:
        """Return the inputs (shared, posi, nega) of one training batch from dataset rows.

        A row has `image`, of one size in all rows, `prompt`, with the extra input `edit_image` a reference image, a
        list of them or None, with `inpaint_mask` a mask, and optionally `seed`, the seed of the sample.
        """
        FAMILY.check_extra_inputs(extra_inputs)
        shared, posi, nega = picture_inputs(rows)
        shared["embedded_guidance"] = TRAINING_GUIDANCE
        if "edit_image" in extra_inputs:
            shared |= reference_inputs(rows)
        if "inpaint_mask" in extra_inputs:
            shared["inpaint_mask"] = [picture_from_row(row, "inpaint_mask") for row in rows]
        return shared, posi, nega


def model_fn_flux1(
    dit: Any,
    latents: Tensor,
    timestep: Tensor,
    prompt_embeds: Tensor,
    pooled_embeds: Tensor,
    prompt_embeds_mask: Tensor | None = None,
    edit_latents: Tensor | None = None,
    edit_sizes: tuple[tuple[int, int], ...] | None = None,
    fill_latents: Tensor | None = None,
    embedded_guidance: float | None = None,
    kv_cache: KvCache | None = None,
    controlnet_block_samples: list[Tensor] | None = None,
    controlnet_single_block_samples: list[Tensor] | None = None,
    use_gradient_checkpointing: bool = False,
    use_gradient_checkpointing_offload: bool = False,
) -> Tensor:
    """Return the velocity that the transformer predicts, with the shape and dtype of `latents`.

    Args:
        dit: The transformer.
        latents: Noisy latents (B, 16, h, w).
        timestep: (B,) or (), in [0, 1000].
        prompt_embeds: Text embeddings of T5 (B, T, D).
        pooled_embeds: Text embeddings of CLIP (B, D').
        prompt_embeds_mask: (B, T), True for tokens to attend to; None for all tokens.
        edit_latents: Tokens of reference images (B or 1, N, 64), for Kontext.
        edit_sizes: Latent sizes of the reference images ((h, w), ...).
        fill_latents: Latents of the masked image, and its mask (B or 1, 16 + 64, h, w), for Fill.
        embedded_guidance: Guidance scale for a network that has it as an input.
        kv_cache: Cached tokens for the blocks double_0, ..., single_0, ...; see dsctl_core.media.kv_cache.
        controlnet_block_samples: Residuals (B, tokens, D) of control networks, spread over the double blocks.
        controlnet_single_block_samples: The same for the single blocks.
        use_gradient_checkpointing: Recompute activations in the backward pass.
        use_gradient_checkpointing_offload: Also keep the saved inputs of blocks in host memory.
    """
    set_checkpointing(dit, use_gradient_checkpointing, use_gradient_checkpointing_offload)
    batch, _, height, width = latents.shape
    dtype, device = compute_dtype(dit, dit.x_embedder.weight), latents.device
    read = (
        latents if fill_latents is None else torch.cat([latents, fill_latents.to(latents).expand(batch, -1, -1, -1)], 1)
    )
    tokens = pack(read).to(dtype)
    if tokens.shape[2] != dit.config.in_channels:
        raise DsctlError(
            f"the network reads {dit.config.in_channels} channels, but these inputs have {tokens.shape[2]}",
            hint="name the model by its folder or preset, so that it is known whether it is Fill",
        )
    count = tokens.shape[1]
    if edit_latents is not None:
        tokens = torch.cat([tokens, edit_latents.to(tokens).expand(batch, -1, -1)], dim=1)
    guidance = None
    if embedded_guidance is not None and dit.config.guidance_embeds:
        guidance = torch.full((batch,), embedded_guidance, dtype=torch.float32, device=device)
    text_ids, image_ids = places(prompt_embeds.shape[1], ((height, width), *(edit_sizes or ())), device)
    velocity = dit(
        hidden_states=tokens,
        timestep=timestep.expand(batch) / 1000,
        guidance=guidance,
        pooled_projections=pooled_embeds.to(dtype),
        encoder_hidden_states=prompt_embeds.to(dtype),
        txt_ids=text_ids,
        img_ids=image_ids,
        joint_attention_kwargs=attention_kwargs_of(dit, kv_cache, prompt_embeds_mask, batch, tokens.shape[1]),
        controlnet_block_samples=residuals_of(controlnet_block_samples, tokens),
        controlnet_single_block_samples=residuals_of(controlnet_single_block_samples, tokens),
        return_dict=False,
    )[0]
    return unpack(velocity[:, :count], height, width).to(latents.dtype)
