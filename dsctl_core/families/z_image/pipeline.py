"""Define ZImagePipeline (text to image, image to image, inpainting; Omni: editing) and its `model_fn`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dsctl_core.control import ControlUse
from dsctl_core.families.z_image import units
from dsctl_core.families.z_image.attention import attending_to
from dsctl_core.families.z_image.control import lists_of, refined_by
from dsctl_core.families.z_image.family import FAMILY
from dsctl_core.families.z_image.latents import SPACE, TILE_SIZE, TILE_STRIDE
from dsctl_core.media import PicturePipeline
from dsctl_core.media import units as picture_units
from dsctl_core.media.kv_cache import KvCache
from dsctl_core.media.pipeline import from_row, picture_inputs
from dsctl_core.media.references import Pictures
from dsctl_core.memory.quantize import compute_dtype
from dsctl_core.memory.recompute import set_checkpointing
from dsctl_core.pipeline import ProgressBar, no_progress_bar
from dsctl_core.units import Inputs


class ZImagePipeline(PicturePipeline):
    """Z-Image (arXiv:2511.22699): a single-stream transformer on image and prompt tokens, with Qwen3 as text encoder.

    The tokens of image and prompt are each padded to a multiple of 32 with learned tokens, inside the transformer.
    """

    family = FAMILY
    latent_space = SPACE

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_fn = model_fn_z_image
        self.units = [
            picture_units.ShapeChecker(),
            picture_units.NoiseInitializer(),
            picture_units.InputImageEmbedder(),
            units.ReferenceEmbedder(),
            picture_units.LatentsInitializer(),
            picture_units.InpaintMask(),
            units.PromptEmbedder(),
        ]

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] = "",
        cfg_scale: float | None = None,
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
            cfg_scale: Scale of classifier-free guidance, diffusers' `guidance_scale` plus 1; 1 disables it (None: the
                model's own).
            edit_image: For Omni, a reference image, a list of them for all prompts, or a list per prompt.
            input_image: Image to start from, or one per prompt.
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
            controls: Scale and range of control networks by name (None: as they were loaded).
        """
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

        A row has `image`, of one size in all rows, `prompt`, with the extra input `edit_image` a reference image or a
        list of them (Omni), and optionally `seed`, the seed of the sample.
        """
        FAMILY.check_extra_inputs(extra_inputs)
        shared, posi, nega = picture_inputs(rows)
        if "edit_image" in extra_inputs:
            references = [from_row(row, "edit_image") for row in rows]
            shared["edit_image"] = [each if isinstance(each, list) else [each] for each in references]
        return shared, posi, nega


def model_fn_z_image(
    dit: Any,
    latents: Tensor,
    timestep: Tensor,
    prompt_embeds: Tensor,
    prompt_embeds_mask: Tensor | None = None,
    prompt_embeds_lengths: Sequence[int] | None = None,
    prompt_pieces: tuple[int, ...] | None = None,
    edit_latents: Tensor | None = None,
    edit_sizes: units.Sizes | None = None,
    siglip_embeds: Tensor | None = None,
    siglip_sizes: units.Sizes | None = None,
    kv_cache: KvCache | None = None,
    controlnet_block_samples: Mapping[int, Tensor] | None = None,
    noise_refiner_samples: Mapping[int, Tensor] | None = None,
    use_gradient_checkpointing: bool = False,
    use_gradient_checkpointing_offload: bool = False,
) -> Tensor:
    """Return the velocity that the transformer predicts, with the shape and dtype of `latents`.

    The network takes a list with one entry per sample. Its time runs from noise (0) to the image (1), and it predicts
    the velocity in that direction, so both are reversed here.

    Args:
        dit: The transformer.
        latents: Noisy latents (B, 16, h, w).
        timestep: (B,) or (), in [0, 1000].
        prompt_embeds: Text embeddings (B, T, D).
        prompt_embeds_mask: (B, T), True for tokens to attend to; None for all tokens.
        prompt_embeds_lengths: The numbers of these tokens, where the host knows them.
        prompt_pieces: Numbers of tokens of the pieces in front of the prompt's own; None without reference images.
        edit_latents: Latents of reference images (B or 1, N, 16), row by row.
        edit_sizes: Latent sizes of the reference images ((h, w), ...).
        siglip_embeds: Features of reference images (B or 1, M, D), row by row.
        siglip_sizes: Numbers of patches of these ((h, w), ...).
        kv_cache: Cached tokens for the blocks single_0, single_1, ...; see dsctl_core.media.kv_cache.
        controlnet_block_samples: Residuals (B, tokens, D) of control networks by the layer after which they are added.
        noise_refiner_samples: The same (B, image tokens, D) for the layers of the refiner of image tokens.
        use_gradient_checkpointing: Recompute activations in the backward pass.
        use_gradient_checkpointing_offload: Also keep the saved inputs of blocks in host memory.
    """
    set_checkpointing(dit, use_gradient_checkpointing, use_gradient_checkpointing_offload)
    batch, dtype = len(latents), compute_dtype(dit, dit.layers[0].feed_forward.w1.weight)
    images, prompts = lists_of(latents, prompt_embeds, prompt_embeds_mask, prompt_embeds_lengths, dtype)
    more: dict[str, Any] = {}
    if controlnet_block_samples is not None:
        samples = {layer: sample.to(dtype) for layer, sample in controlnet_block_samples.items()}
        more["controlnet_block_samples"] = samples
    if dit.config.siglip_feat_dim is not None:
        # Omni, with references or without: lists of images and of pieces of text, of which the last image is noisy.
        clean = _images(edit_latents, edit_sizes, batch, dtype)
        features = _images(siglip_embeds, siglip_sizes, batch, dtype)
        prompts = [_in_order(row, prompt_pieces) for row in prompts]
        pairs = zip(clean, images, strict=True)
        images = [[*(each.permute(2, 0, 1).unsqueeze(1) for each in own), image] for own, image in pairs]
        more |= {
            "siglip_feats": [[*own, None] if own else None for own in features],
            "image_noise_mask": [[0] * len(own) + [1] for own in clean],
        }
    time = (1000 - timestep.expand(batch)) / 1000
    with attending_to(dit, kv_cache, batch), refined_by(dit, noise_refiner_samples):
        output = dit(images, time, prompts, return_dict=False, **more)[0]
    return -torch.stack(output).squeeze(2).to(latents.dtype)


def _images(tokens: Tensor | None, sizes: units.Sizes | None, batch: int, dtype: torch.dtype) -> list[list[Tensor]]:
    """Return the images (h, w, C) in `tokens` (B or 1, N, C) of each of `batch` samples; empty lists without tokens."""
    if tokens is None or sizes is None:
        return [[] for _ in range(batch)]
    counts = [height * width for height, width in sizes]
    rows = tokens.to(dtype).expand(batch, -1, -1).unbind()
    return [[each.unflatten(0, s) for each, s in zip(row.split(counts), sizes, strict=True)] for row in rows]


def _in_order(row: Tensor, pieces: tuple[int, ...] | None) -> list[Tensor]:
    """Return the pieces of a chat in the order of the text: the prompt's own, stored last, is the last but one."""
    if not pieces:
        return [row]
    *before, after, prompt = row.split([*pieces, len(row) - sum(pieces)])
    return [*before, prompt, after]
