"""Define QwenImageEditPipeline (editing, with one or several reference images) and its `model_fn`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dsctl_core.control import ControlUse
from dsctl_core.families.qwen_image.attention import attention_kwargs_of
from dsctl_core.families.qwen_image.latents import TILE_SIZE, TILE_STRIDE, pack, unpack
from dsctl_core.families.qwen_image.pipeline import QwenImagePipeline
from dsctl_core.families.qwen_image_edit import units
from dsctl_core.families.qwen_image_edit.family import FAMILY, edited_size, is_plus, reference_pixels
from dsctl_core.media.kv_cache import KvCache
from dsctl_core.media.pipeline import picture_inputs, reference_inputs
from dsctl_core.media.references import EditImageEmbedder, Pictures, by_sample
from dsctl_core.memory.quantize import compute_dtype
from dsctl_core.memory.recompute import set_checkpointing
from dsctl_core.pipeline import ProgressBar, no_progress_bar
from dsctl_core.units import Inputs


class QwenImageEditPipeline(QwenImagePipeline):
    """Qwen-Image-Edit (arXiv:2508.02324, section 4): Qwen-Image with reference images.

    The text encoder reads the prompt together with the reference images, and the transformer reads their latents after
    the tokens of the generated image.
    """

    family = FAMILY

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_fn = model_fn_qwen_image_edit
        fitted = partial(units.resized, pixels=reference_pixels(self.parts))
        prompts = units.PromptWithImagesEmbedder() if is_plus(self.parts) else units.PromptWithImageEmbedder()
        self.units = [*self.units[:-1], EditImageEmbedder(fitted, pack), prompts]

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] = " ",
        cfg_scale: float | None = None,
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
        edit_image: Pictures | None = None,
        *,
        control_inputs: Mapping[str, Any] | None = None,
        controls: Mapping[str, ControlUse] | None = None,
    ) -> Image.Image | list[Image.Image]:
        """Generate an image for `prompt`, or a list of images for a list of prompts, equal to those generated singly.

        Args:
            prompt: A prompt, or several.
            negative_prompt: A negative prompt, or one per prompt; unused if `cfg_scale` is 1.
            cfg_scale: Scale of classifier-free guidance; 1 disables it (None: the model's own).
            input_image: Image to start from, or one per prompt.
            denoising_strength: Noise level at which denoising of `input_image` starts, before the shift.
            inpaint_mask: Mask of `input_image`: white is generated, black is kept.
            height: Height in pixels (None: about a megapixel in the aspect ratio of the last reference image).
            width: Width in pixels (None: see `height`).
            seed: A seed for all prompts, or one per prompt.
            rand_device: Device of the random generator.
            num_inference_steps: Number of denoising steps (None: the model's own).
            tiled: Whether the VAE works in tiles, which needs less memory.
            tile_size: Size of a tile in pixels.
            tile_stride: Distance of tiles in pixels.
            noise: Noise to use instead of drawing it.
            progress_bar_cmd: Wraps the timesteps, as `tqdm` does.
            edit_image: A reference image, a list of them for all prompts, or a list per prompt.
            control_inputs: Inputs of the control networks of the pipeline by name, such as `control_image`.
            controls: Scale and range of control networks by name (None: as they were loaded).
        """
        if height is None or width is None:
            sizes = [(1, 1)] if edit_image is None else [image.size for image in by_sample(edit_image)[0]]
            own = edited_size(self.parts, sizes, reference_pixels(self.parts))
            width, height = own[0] if width is None else width, own[1] if height is None else height
        return self.draw(
            prompt=prompt,
            negative_prompt=negative_prompt,
            num_inference_steps=num_inference_steps,
            denoising_strength=denoising_strength,
            progress_bar_cmd=progress_bar_cmd,
            shared={
                "cfg_scale": cfg_scale,
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

    @classmethod
    def inputs_from_rows(
        cls, rows: Sequence[Inputs], extra_inputs: Sequence[str] = ()
    ) -> tuple[Inputs, Inputs, Inputs]:
        """Return the inputs (shared, posi, nega) of one training batch from dataset rows.

        A row has `image`, of one size in all rows, `prompt`, with the extra input `edit_image` a reference image, a
        list of them or None, and optionally `seed`, the seed of the sample.
        """
        FAMILY.check_extra_inputs(extra_inputs)
        shared, posi, nega = picture_inputs(rows)
        if "edit_image" in extra_inputs:
            shared |= reference_inputs(rows)
        return shared, posi, nega


def model_fn_qwen_image_edit(
    dit: Any,
    latents: Tensor,
    timestep: Tensor,
    prompt_embeds: Tensor,
    prompt_embeds_mask: Tensor | None = None,
    edit_latents: Tensor | None = None,
    edit_sizes: tuple[tuple[int, int], ...] | None = None,
    kv_cache: KvCache | None = None,
    use_gradient_checkpointing: bool = False,
    use_gradient_checkpointing_offload: bool = False,
) -> Tensor:
    """Return the velocity that the transformer predicts, with the shape and dtype of `latents`.

    Args:
        dit: The transformer.
        latents: Noisy latents (B, 16, h, w).
        timestep: (B,) or (), in [0, 1000].
        prompt_embeds: Text embeddings (B, T, D).
        prompt_embeds_mask: (B, T), True for tokens to attend to; None for all tokens.
        edit_latents: Tokens of reference images (B or 1, N, 64).
        edit_sizes: Latent sizes of the reference images ((h, w), ...).
        kv_cache: Cached tokens for the blocks double_0, double_1, ...; see dsctl_core.media.kv_cache.
        use_gradient_checkpointing: Recompute activations in the backward pass.
        use_gradient_checkpointing_offload: Also keep the saved inputs of blocks in host memory.
    """
    set_checkpointing(dit, use_gradient_checkpointing, use_gradient_checkpointing_offload)
    batch, _, height, width = latents.shape
    dtype = compute_dtype(dit, dit.img_in.weight)
    tokens = pack(latents).to(dtype)
    count = tokens.shape[1]
    if edit_latents is not None:
        tokens = torch.cat([tokens, edit_latents.to(tokens).expand(batch, -1, -1)], dim=1)
    sizes = ((height, width), *(edit_sizes or ()))
    velocity = dit(
        hidden_states=tokens,
        timestep=timestep.expand(batch) / 1000,
        encoder_hidden_states=prompt_embeds.to(dtype),
        encoder_hidden_states_mask=prompt_embeds_mask,
        # A token is a patch of 2 x 2 latents; the network numbers the images of a sample by their place in the list.
        img_shapes=[[(1, tall // 2, wide // 2) for tall, wide in sizes]] * batch,
        attention_kwargs=attention_kwargs_of(dit, kv_cache, batch),
        return_dict=False,
    )[0]
    return unpack(velocity[:, :count], height, width).to(latents.dtype)
