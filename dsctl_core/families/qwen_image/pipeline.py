"""QwenImagePipeline: text to image, image to image and inpainting, and the forward pass that training shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dsctl_core.errors import DsctlError, UsageError, unknown_name
from dsctl_core.families.qwen_image import units
from dsctl_core.families.qwen_image.attention import attention_kwargs_of
from dsctl_core.families.qwen_image.family import FAMILY
from dsctl_core.families.qwen_image.latents import TILE_SIZE, TILE_STRIDE, decode, pack, unpack
from dsctl_core.families.qwen_image.one_frame import skip_empty_frames
from dsctl_core.kv_cache import KvCache
from dsctl_core.memory import gradient_checkpoint_forward
from dsctl_core.pipeline import BasePipeline, ProgressBar, no_progress_bar
from dsctl_core.units import Inputs


class QwenImagePipeline(BasePipeline):
    """Qwen-Image (arXiv:2508.02324): a 2x2-patch transformer over VAE latents, prompted by Qwen2.5-VL."""

    family = FAMILY
    in_iteration_models = ("dit",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "vae" in self.components:
            skip_empty_frames(self.component("vae"))
        self.model_fn = model_fn_qwen_image
        self.units = [
            units.ShapeChecker(),
            units.NoiseInitializer(),
            units.InputImageEmbedder(),
            units.LatentsInitializer(),
            units.InpaintMask(),
            units.PromptEmbedder(),
        ]

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] = "",
        cfg_scale: float = 4.0,
        input_image: Image.Image | list[Image.Image] | None = None,
        denoising_strength: float = 1.0,
        inpaint_mask: Image.Image | None = None,
        height: int = 1328,
        width: int = 1328,
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

        `cfg_scale` 1 leaves `negative_prompt` out. `input_image` is changed as far as `denoising_strength` allows, and
        with `inpaint_mask` only where that is white. One `seed` serves every prompt of a list. `tiled` has the VAE
        work in tiles of `tile_size` pixels, `tile_stride` apart, which takes less memory.
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
                "inpaint_mask": inpaint_mask,
                "height": height,
                "width": width,
                "seed": _for_each_prompt("seed", seed, prompt),
                "rand_device": rand_device,
                "tiled": tiled,
                "tile_size": tile_size,
                "tile_stride": tile_stride,
                "noise": noise,
            },
        )
        self.load_models_to_device(("vae",))
        pictures = self.vae_output_to_image(decode(self.component("vae"), latents, tiled, tile_size, tile_stride))
        return pictures if isinstance(prompt, list) else pictures[0]

    def generate(
        self,
        *,
        prompt: str | list[str],
        negative_prompt: str | list[str],
        num_inference_steps: int,
        denoising_strength: float,
        progress_bar_cmd: ProgressBar,
        shared: Inputs,
    ) -> Tensor:
        """Return the clean latents, (B, 16, h, w), of what `__call__` decodes."""
        tokens = self.image_tokens(shared["height"], shared["width"])
        self.scheduler.set_timesteps(num_inference_steps, denoising_strength, dynamic_shift_len=tokens)
        posi: Inputs = {"prompt": prompt}
        nega: Inputs = {"negative_prompt": _for_each_prompt("negative prompt", negative_prompt, prompt)}
        shared, posi, nega = self.run_units(shared, posi, nega)
        return self.denoise(shared, posi, nega, cfg_scale=shared["cfg_scale"], progress_bar_cmd=progress_bar_cmd)

    def decode_latents(self, latents: Tensor) -> list[Image.Image]:
        """Return the pictures of clean latents, (B, 16, h, w)."""
        self.load_models_to_device(("vae",))
        placed = latents.to(self.device, torch.float32)
        return self.vae_output_to_image(decode(self.component("vae"), placed, False, TILE_SIZE, TILE_STRIDE))

    def guide(self, posi: Tensor, nega: Tensor, cfg_scale: float) -> Tensor:
        """Guide, then give each token's velocity the norm that it has with the prompt alone.

        Large scales otherwise overshoot, and the picture gets harsh; the published pipeline does the same.
        """
        guided = pack(super().guide(posi, nega, cfg_scale))
        wanted, actual = (torch.norm(tokens, dim=-1, keepdim=True) for tokens in (pack(posi), guided))
        # Where nothing is predicted there is nothing to scale.
        guided = guided * (wanted / actual.clamp_min(torch.finfo(actual.dtype).tiny))
        return unpack(guided, *posi.shape[-2:])

    @classmethod
    def inputs_from_rows(
        cls, rows: Sequence[Inputs], extra_inputs: Sequence[str] = ()
    ) -> tuple[Inputs, Inputs, Inputs]:
        """Turn dataset rows into (shared, posi, nega) inputs of one training batch.

        A row has `image` (a picture; all of one size), `prompt`, and may have `seed`, its sample's own.
        """
        if extra_inputs:
            raise unknown_name("extra input", extra_inputs[0], [], listing=f"{FAMILY.title} takes no extra inputs")
        images = [_from_row(row, "image") for row in rows]
        for image in images[1:]:
            if image.size != images[0].size:
                raise DsctlError(
                    f"one batch has pictures of {_size(images[0])} and of {_size(image)}",
                    hint="give a fixed --height and --width, or a batch size of 1",
                )
        shared: Inputs = {
            "input_image": images,
            "height": images[0].height,
            "width": images[0].width,
            "cfg_scale": 1,
            "seed": [row.get("seed") for row in rows],
            "rand_device": "cpu",
        }
        return shared, {"prompt": [_from_row(row, "prompt") for row in rows]}, {"negative_prompt": ""}


def model_fn_qwen_image(
    dit: Any,
    latents: Tensor,
    timestep: Tensor,
    prompt_embeds: Tensor,
    prompt_embeds_mask: Tensor | None = None,
    kv_cache: KvCache | None = None,
    use_gradient_checkpointing: bool = False,
    use_gradient_checkpointing_offload: bool = False,
) -> Tensor:
    """Return the velocity of `latents` (B, 16, h, w) at `timestep` (B,) or (), in [0, 1000], in latents' dtype.

    `prompt_embeds` is (B, T, D); `prompt_embeds_mask` (B, T), or None when every token counts. `kv_cache` adds tokens
    to the attention of the blocks double_0, double_1, ...; see dsctl_core.kv_cache.
    """
    _set_checkpointing(dit, use_gradient_checkpointing, use_gradient_checkpointing_offload)
    batch, _, height, width = latents.shape
    dtype = _compute_dtype(dit)
    velocity = dit(
        hidden_states=pack(latents).to(dtype),
        timestep=timestep.expand(batch) / 1000,
        encoder_hidden_states=prompt_embeds.to(dtype),
        encoder_hidden_states_mask=prompt_embeds_mask,
        img_shapes=[[(1, height // 2, width // 2)]] * batch,
        attention_kwargs=attention_kwargs_of(dit, kv_cache, batch),
        return_dict=False,
    )[0]
    return unpack(velocity, height, width).to(latents.dtype)


def _compute_dtype(dit: Any) -> torch.dtype:
    """Return the dtype that the transformer takes, without the walk over all of its modules that `dit.dtype` is."""
    stored = dit.img_in.weight.dtype
    # Weights stored in eight bits are computed with in more; only the model's hooks know in how many.
    return stored if stored.itemsize > 1 else dit.dtype


def _set_checkpointing(dit: Any, use_gradient_checkpointing: bool, offload: bool) -> None:
    """Plug our checkpointing into the transformer's blocks, or take it out, where that changes anything."""

    def run_block(block: Any, *args: Any) -> Any:
        return gradient_checkpoint_forward(block, use_gradient_checkpointing, offload, *args)

    if use_gradient_checkpointing or offload:
        dit.enable_gradient_checkpointing(gradient_checkpointing_func=run_block)
    elif dit.gradient_checkpointing:
        dit.disable_gradient_checkpointing()


def _for_each_prompt(what: str, value: Any, prompt: str | list[str]) -> Any:
    """Repeat `value` for every prompt of a list; a list of values must be as long as that of the prompts."""
    count = len(prompt) if isinstance(prompt, list) else 1
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise UsageError(f"{len(value)} {what}s for {count} prompts", hint="give one, or one for each prompt")
    return value


def _from_row(row: Inputs, name: str) -> Any:
    if row.get(name) is None:
        raise DsctlError(f"row {row.get('_row', '?')} has no {name!r}", hint="the dataset needs image and prompt")
    return row[name]


def _size(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"
