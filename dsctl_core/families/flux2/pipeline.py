"""Flux2Pipeline: text to image, image to image, inpainting and editing, and the forward pass that training shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dsctl_core.errors import UsageError, unknown_name
from dsctl_core.families.flux2 import units
from dsctl_core.families.flux2.attention import attention_kwargs_of
from dsctl_core.families.flux2.family import EMBEDDED_GUIDANCE, FAMILY
from dsctl_core.families.flux2.latents import (
    SPACE,
    TILE_SIZE,
    TILE_STRIDE,
    pack,
    picture_places,
    text_places,
    unpack,
)
from dsctl_core.media import PicturePipeline
from dsctl_core.media import units as picture_units
from dsctl_core.media.kv_cache import KvCache
from dsctl_core.media.pipeline import for_each_prompt, from_row, picture_inputs
from dsctl_core.media.references import EditImageEmbedder, Pictures
from dsctl_core.memory.quantize import compute_dtype
from dsctl_core.memory.recompute import set_checkpointing
from dsctl_core.pipeline import ProgressBar, no_progress_bar
from dsctl_core.units import Inputs

TRAINING_GUIDANCE = 1.0  # of a network that takes guidance: the data as they are, neither exaggerated nor weakened


class Flux2Pipeline(PicturePipeline):
    """FLUX.2 (https://bfl.ai/blog/flux-2): a transformer over VAE latents, prompted by a language model.

    Reference pictures stand beside the one that is made, each at a place of its own.
    """

    family = FAMILY
    latent_space = SPACE

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_fn = model_fn_flux2
        self.units = [
            picture_units.ShapeChecker(),
            picture_units.NoiseInitializer(),
            picture_units.InputImageEmbedder(),
            EditImageEmbedder(units.fitted, pack),
            picture_units.LatentsInitializer(),
            picture_units.InpaintMask(),
            units.PromptEmbedder(),
        ]

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] = "",
        cfg_scale: float = 4.0,
        embedded_guidance: float | None = None,
        edit_image: Pictures | None = None,
        input_image: Image.Image | list[Image.Image] | None = None,
        denoising_strength: float = 1.0,
        inpaint_mask: Image.Image | None = None,
        height: int = 1024,
        width: int = 1024,
        seed: int | list[int] | None = None,
        rand_device: torch.device | str = "cpu",
        num_inference_steps: int = 50,
        tiled: bool = False,
        tile_size: int = TILE_SIZE,
        tile_stride: int = TILE_STRIDE,
        noise: Tensor | None = None,
        progress_bar_cmd: ProgressBar = no_progress_bar,
    ) -> Image.Image | list[Image.Image]:
        """Make a picture of `prompt`; of a list of prompts a list, the same as one by one.

        `cfg_scale` 1 leaves `negative_prompt` out. `embedded_guidance` is for networks that take it (None: 4 there).
        `edit_image` is a reference picture, or a list of them for all prompts, or a list for each prompt.
        `input_image` is changed as far as `denoising_strength` allows, and with `inpaint_mask` only where that is
        white. One `seed` serves every prompt of a list. `tiled` has the VAE work in tiles of `tile_size` pixels,
        `tile_stride` apart, which takes less memory.
        """
        latents = self.generate(
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
                "seed": for_each_prompt("seed", seed, prompt),
                "rand_device": rand_device,
                "tiled": tiled,
                "tile_size": tile_size,
                "tile_stride": tile_stride,
                "noise": noise,
            },
        )
        pictures = self.decode_latents(latents, tiled, tile_size, tile_stride)
        return pictures if isinstance(prompt, list) else pictures[0]

    def guidance(self, asked: float | None) -> float | None:
        """Return the guidance for the network: what is `asked`, or its default; None where it takes none."""
        if "dit" not in self.components:  # where prompts are only read, as before training, there is nothing to guide
            return asked
        if self.component("dit").config.guidance_embeds:
            return EMBEDDED_GUIDANCE if asked is None else asked
        if asked is not None:
            raise UsageError("these weights take no embedded guidance", hint="use the cfg scale instead")
        return None

    @classmethod
    def inputs_from_rows(
        cls, rows: Sequence[Inputs], extra_inputs: Sequence[str] = ()
    ) -> tuple[Inputs, Inputs, Inputs]:
        """Turn dataset rows into (shared, posi, nega) inputs of one training batch.

        A row has `image` (a picture; all of one size), `prompt`, with the extra input `edit_image` a reference
        picture or a list of them, and may have `seed`, its sample's own.
        """
        for name in extra_inputs:
            if name not in FAMILY.extra_inputs:
                raise unknown_name("extra input", name, list(FAMILY.extra_inputs))
        shared, posi, nega = picture_inputs(rows)
        shared["embedded_guidance"] = TRAINING_GUIDANCE
        if "edit_image" in extra_inputs:
            references = [from_row(row, "edit_image") for row in rows]
            shared["edit_image"] = [each if isinstance(each, list) else [each] for each in references]
        return shared, posi, nega


def model_fn_flux2(
    dit: Any,
    latents: Tensor,
    timestep: Tensor,
    prompt_embeds: Tensor,
    prompt_embeds_mask: Tensor | None = None,
    edit_latents: Tensor | None = None,
    edit_sizes: tuple[tuple[int, int], ...] | None = None,
    embedded_guidance: float | None = None,
    kv_cache: KvCache | None = None,
    use_gradient_checkpointing: bool = False,
    use_gradient_checkpointing_offload: bool = False,
) -> Tensor:
    """Return the velocity of `latents` (B, 128, h, w) at `timestep` (B,) or (), in [0, 1000], in latents' dtype.

    `prompt_embeds` is (B, T, D); `prompt_embeds_mask` (B, T), or None when every token counts. `edit_latents`
    (B or 1, N, 128) are the tokens of reference pictures of `edit_sizes` ((h, w), ...). `embedded_guidance` goes to a
    network that takes it. `kv_cache` adds tokens to the attention of the blocks double_0, double_1, ..., single_0,
    single_1, ...; see dsctl_core.media.kv_cache.
    """
    set_checkpointing(dit, use_gradient_checkpointing, use_gradient_checkpointing_offload)
    batch, _, height, width = latents.shape
    dtype, device = compute_dtype(dit, dit.x_embedder.weight), latents.device
    tokens = pack(latents).to(dtype)
    count = tokens.shape[1]
    if edit_latents is not None:
        tokens = torch.cat([tokens, edit_latents.to(tokens).expand(batch, -1, -1)], dim=1)
    guidance = None
    if embedded_guidance is not None and dit.config.guidance_embeds:
        guidance = torch.full((batch,), embedded_guidance, dtype=torch.float32, device=device)
    velocity = dit(
        hidden_states=tokens,
        timestep=timestep.expand(batch) / 1000,
        guidance=guidance,
        encoder_hidden_states=prompt_embeds.to(dtype),
        txt_ids=text_places(prompt_embeds.shape[1], device),
        img_ids=picture_places(((height, width), *(edit_sizes or ())), device),
        joint_attention_kwargs=attention_kwargs_of(dit, kv_cache, prompt_embeds_mask, batch, tokens.shape[1]),
        return_dict=False,
    )[0]
    return unpack(velocity[:, :count], height, width).to(latents.dtype)
