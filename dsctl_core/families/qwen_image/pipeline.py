"""Define QwenImagePipeline (text to image, image to image, inpainting) and its `model_fn`, also used in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dsctl_core.control import ControlUse
from dsctl_core.errors import unknown_name
from dsctl_core.families.qwen_image import units
from dsctl_core.families.qwen_image.attention import attention_kwargs_of
from dsctl_core.families.qwen_image.family import FAMILY
from dsctl_core.families.qwen_image.latents import SPACE, TILE_SIZE, TILE_STRIDE, pack, unpack
from dsctl_core.families.qwen_image.single_frame_vae import encode_single_frames
from dsctl_core.media import PicturePipeline
from dsctl_core.media import units as picture_units
from dsctl_core.media.kv_cache import KvCache
from dsctl_core.media.pipeline import picture_inputs
from dsctl_core.memory.quantize import compute_dtype
from dsctl_core.memory.recompute import set_checkpointing
from dsctl_core.pipeline import ProgressBar, no_progress_bar
from dsctl_core.units import Inputs


class QwenImagePipeline(PicturePipeline):
    """Qwen-Image (arXiv:2508.02324): a transformer on 2x2 patches of VAE latents, with Qwen2.5-VL as text encoder."""

    family = FAMILY
    latent_space = SPACE

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "vae" in self.components:
            encode_single_frames(self.component("vae"))
        self.model_fn = model_fn_qwen_image
        self.units = [
            picture_units.ShapeChecker(),
            picture_units.NoiseInitializer(),
            units.InputImageEmbedder(),
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

    def guide(self, posi: Tensor, nega: Tensor, cfg_scale: float) -> Tensor:
        """Apply classifier-free guidance, then rescale the velocity of each token to its norm with the prompt alone.

        Without rescaling, large scales overshoot and images get harsh; the published pipeline does the same.
        """
        guided = pack(super().guide(posi, nega, cfg_scale))
        wanted, actual = (torch.norm(tokens, dim=-1, keepdim=True) for tokens in (pack(posi), guided))
        # The lower bound avoids a division by zero for a velocity of zero.
        guided = guided * (wanted / actual.clamp_min(torch.finfo(actual.dtype).tiny))
        return unpack(guided, *posi.shape[-2:])

    @classmethod
    def inputs_from_rows(
        cls, rows: Sequence[Inputs], extra_inputs: Sequence[str] = ()
    ) -> tuple[Inputs, Inputs, Inputs]:
        """Return the inputs (shared, posi, nega) of one training batch from dataset rows.

        A row has `image`, of one size in all rows, `prompt`, and optionally `seed`, the seed of the sample.
        """
        if extra_inputs:
            raise unknown_name("extra input", extra_inputs[0], [], listing=f"{FAMILY.title} takes no extra inputs")
        return picture_inputs(rows)


def residuals_of(samples: list[Tensor] | None, dtype: torch.dtype) -> list[Tensor] | None:
    """Return the residuals of control networks in the dtype of the transformer: a trained network has float32."""
    return None if samples is None else [sample.to(dtype) for sample in samples]


def model_fn_qwen_image(
    dit: Any,
    latents: Tensor,
    timestep: Tensor,
    prompt_embeds: Tensor,
    prompt_embeds_mask: Tensor | None = None,
    kv_cache: KvCache | None = None,
    controlnet_block_samples: list[Tensor] | None = None,
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
        kv_cache: Cached tokens for the blocks double_0, double_1, ...; see dsctl_core.media.kv_cache.
        controlnet_block_samples: Residuals (B, tokens, D) of control networks, spread over the blocks.
        use_gradient_checkpointing: Recompute activations in the backward pass.
        use_gradient_checkpointing_offload: Also keep the saved inputs of blocks in host memory.
    """
    set_checkpointing(dit, use_gradient_checkpointing, use_gradient_checkpointing_offload)
    batch, _, height, width = latents.shape
    dtype = compute_dtype(dit, dit.img_in.weight)
    velocity = dit(
        hidden_states=pack(latents).to(dtype),
        timestep=timestep.expand(batch) / 1000,
        encoder_hidden_states=prompt_embeds.to(dtype),
        encoder_hidden_states_mask=prompt_embeds_mask,
        img_shapes=[[(1, height // 2, width // 2)]] * batch,
        attention_kwargs=attention_kwargs_of(dit, kv_cache, batch),
        controlnet_block_samples=residuals_of(controlnet_block_samples, dtype),
        return_dict=False,
    )[0]
    return unpack(velocity, height, width).to(latents.dtype)
