"""Define QwenImageLayeredPipeline (a picture to its transparent layers) and its `model_fn`, also used in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dsctl_core.data.sizes import require_same_ratio
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.qwen_image.attention import attention_kwargs_of
from dsctl_core.families.qwen_image.latents import TILE_SIZE, TILE_STRIDE
from dsctl_core.families.qwen_image.pipeline import QwenImagePipeline
from dsctl_core.families.qwen_image.units import PromptEmbedder
from dsctl_core.families.qwen_image_layered import units
from dsctl_core.families.qwen_image_layered.captions import caption_of
from dsctl_core.families.qwen_image_layered.family import FAMILY, decomposed_size
from dsctl_core.families.qwen_image_layered.latents import SPACE, pack, unpack
from dsctl_core.media import Layers
from dsctl_core.media import units as picture_units
from dsctl_core.media.kv_cache import KvCache
from dsctl_core.media.pipeline import for_each_prompt, picture_inputs, pictures_from_row
from dsctl_core.memory.quantize import compute_dtype
from dsctl_core.memory.recompute import set_checkpointing
from dsctl_core.pipeline import ProgressBar, no_progress_bar
from dsctl_core.pixels import to_pixels
from dsctl_core.readable import counted
from dsctl_core.units import Inputs


class QwenImageLayeredPipeline(QwenImagePipeline):
    """Qwen-Image-Layered (arXiv:2512.15603): Qwen-Image that decomposes a picture into RGBA layers.

    The tokens of a sample are those of the whole picture, which the network gives back, then those of the layers, and
    those of the picture to decompose, which stay as they are.
    """

    family = FAMILY
    latent_space = SPACE

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_fn = model_fn_qwen_image_layered
        self.units = [
            picture_units.ShapeChecker(),
            units.NoiseInitializer(),
            units.LayersEmbedder(),
            picture_units.LatentsInitializer(),
            PromptEmbedder(),
        ]

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] = " ",
        cfg_scale: float | None = None,
        edit_image: Image.Image | list[Image.Image] | None = None,
        layers: int | None = None,
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
    ) -> Any:
        """Decompose a picture: return its Layers, or a list of them for a list of prompts.

        With 0 layers the result is one image, which models that cut out what the prompt names make.

        Args:
            prompt: A description of the picture, or several (None: the text encoder describes it).
            negative_prompt: A negative prompt, or one per prompt; unused if `cfg_scale` is 1.
            cfg_scale: Scale of classifier-free guidance; 1 disables it (None: the model's own).
            edit_image: The picture, or one per prompt; it may have transparent pixels.
            layers: Number of layers (None: the model's own).
            height: Height in pixels (None: the model's own area in the aspect ratio of the picture).
            width: Width in pixels (None: see `height`).
            seed: A seed for all prompts, or one per prompt.
            rand_device: Device of the random generator.
            num_inference_steps: Number of denoising steps (None: the model's own).
            tiled: Whether the VAE works in tiles, which needs less memory.
            tile_size: Size of a tile in pixels.
            tile_stride: Distance of tiles in pixels.
            noise: Noise to use instead of drawing it.
            progress_bar_cmd: Wraps the timesteps, as `tqdm` does.
        """
        if edit_image is None:
            raise UsageError(f"{FAMILY.title} decomposes a picture, but none is given", hint="give an edit_image")
        pictures = edit_image if isinstance(edit_image, list) else [edit_image]
        if height is None or width is None:
            pixels = self.defaults["height"] * self.defaults["width"]
            own = decomposed_size(self.parts, [picture.size for picture in pictures], pixels)
            width, height = own[0] if width is None else width, own[1] if height is None else height
        shown = [fitted(picture, width, height) for picture in pictures]
        if prompt is None:
            prompt = caption_of(self, shown[0]) if len(shown) == 1 else [caption_of(self, each) for each in shown]
        return self.draw(
            prompt=prompt,
            negative_prompt=negative_prompt,
            num_inference_steps=num_inference_steps,
            denoising_strength=1.0,
            progress_bar_cmd=progress_bar_cmd,
            shared={
                "cfg_scale": cfg_scale,
                "edit_image": shown if len(shown) == 1 else for_each_prompt("picture", shown, prompt),
                "layer_num": self.default("layers", layers),
                "height": height,
                "width": width,
                "seed": seed,
                "rand_device": rand_device,
                "tiled": tiled,
                "tile_size": tile_size,
                "tile_stride": tile_stride,
                "noise": noise,
            },
        )

    def caption(self, picture: Image.Image, height: int, width: int) -> str:
        """Return the prompt for a picture that is decomposed at `height` x `width` pixels without one."""
        return caption_of(self, fitted(picture, width, height))

    def preprocess_image(self, image: Image.Image | list[Image.Image]) -> Tensor:
        """Return an image, or a list of images of one size, as RGBA (B, 4, H, W) float32 in [-1, 1]."""
        return torch.cat([to_pixels(each, keep_alpha=True) for each in (image if isinstance(image, list) else [image])])

    def decode_latents(
        self, latents: Tensor, tiled: bool = False, tile_size: int | None = None, tile_stride: int | None = None
    ) -> list[Any]:
        """Decode clean latents (B, F, 16, h, w) to the Layers of each sample; to an image if there are no layers.

        The whole picture of a sample with layers, a copy of the picture that was decomposed, is not decoded.
        """
        wanted = latents[:, 1:] if latents.shape[1] > 1 else latents
        found = [self.vae_output_to_image(each) for each in self.decode_pixels(wanted, tiled, tile_size, tile_stride)]
        return [Layers(tuple(each)) for each in found] if latents.shape[1] > 1 else [each[0] for each in found]

    def guide(self, posi: Tensor, nega: Tensor, cfg_scale: float) -> Tensor:
        """Apply classifier-free guidance as Qwen-Image does, token by token, to latents (B, F, 16, h, w)."""
        return super().guide(posi.flatten(0, 1), nega.flatten(0, 1), cfg_scale).unflatten(0, posi.shape[:2])

    @classmethod
    def inputs_from_rows(
        cls, rows: Sequence[Inputs], extra_inputs: Sequence[str] = ()
    ) -> tuple[Inputs, Inputs, Inputs]:
        """Return the inputs (shared, posi, nega) of one training batch from dataset rows.

        A row has `prompt`, and `image`, the whole picture; with the extra input `layers` a list of layers from the
        bottom to the top, of which the whole picture is made in a row without `image`; with `edit_image` the picture to
        decompose, None for the whole one; and optionally `seed`, the seed of the sample.
        """
        FAMILY.check_extra_inputs(extra_inputs)
        stacks = [_stack_of(row, "layers" in extra_inputs) for row in rows]
        for stack in stacks[1:]:
            if len(stack) != len(stacks[0]):
                raise DsctlError(
                    f"one batch has samples of {len(stacks[0]) - 1} and of {counted(len(stack) - 1, 'layer')}",
                    hint="give all rows the same number, or a batch size of 1",
                )
        shown = [next(picture for picture in stack if picture is not None) for stack in stacks]
        shared, posi, nega = picture_inputs([{**row, "image": own} for row, own in zip(rows, shown, strict=True)])
        del shared["input_image"]
        shared |= {"input_layers": stacks, "layer_num": len(stacks[0]) - 1}
        if "edit_image" in extra_inputs:
            shared["edit_image"] = [_reference_of(row) for row in rows]
        return shared, posi, nega


def _stack_of(row: Inputs, layered: bool) -> list[Image.Image | None]:
    """Return the whole picture of a row, None to make it, and its layers; their sizes must agree."""
    layers = pictures_from_row(row, "layers") if layered else []
    if row.get("image") is None and not layers:
        given = "" if layered or "layers" not in row else "; layers are read with --extra-inputs layers"
        raise DsctlError(
            f"row {row.get('_row', '?')} has neither 'image' nor 'layers'",
            hint=f"the dataset needs layers, or image, and prompt{given}",
        )
    whole = pictures_from_row(row, "image") if row.get("image") is not None else [None]
    sizes = {picture.size for picture in (*whole, *layers) if picture is not None}
    if len(sizes) > 1:
        listed = " and ".join(f"{width}x{height}" for width, height in sorted(sizes))
        raise DsctlError(
            f"row {row.get('_row', '?')} has a picture and layers of {listed} pixels",
            hint="they lie on each other: give them one size",
        )
    return [*whole, *layers]


def _reference_of(row: Inputs) -> Image.Image | None:
    given = pictures_from_row(row, "edit_image")
    if len(given) > 1:
        raise DsctlError(
            f"row {row.get('_row', '?')} has {len(given)} pictures to decompose",
            hint="give one edit_image, or none for the picture itself",
        )
    return given[0] if given else None


def fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Return a picture as RGBA of `width` x `height` pixels; raise DsctlError for a size of another aspect ratio."""
    require_same_ratio(picture.size, (width, height))
    return picture.convert("RGBA").resize((width, height), Image.Resampling.LANCZOS)


def model_fn_qwen_image_layered(
    dit: Any,
    latents: Tensor,
    timestep: Tensor,
    prompt_embeds: Tensor,
    edit_latents: Tensor,
    prompt_embeds_mask: Tensor | None = None,
    kv_cache: KvCache | None = None,
    use_gradient_checkpointing: bool = False,
    use_gradient_checkpointing_offload: bool = False,
) -> Tensor:
    """Return the velocity that the transformer predicts, with the shape and dtype of `latents`.

    Args:
        dit: The transformer.
        latents: Noisy latents of the whole picture and its layers (B, F, 16, h, w).
        timestep: (B,) or (), in [0, 1000].
        prompt_embeds: Text embeddings (B, T, D).
        edit_latents: Latents of the picture to decompose (B or 1, 16, h, w).
        prompt_embeds_mask: (B, T), True for tokens to attend to; None for all tokens.
        kv_cache: Cached tokens for the blocks double_0, double_1, ...; see dsctl_core.media.kv_cache.
        use_gradient_checkpointing: Recompute activations in the backward pass.
        use_gradient_checkpointing_offload: Also keep the saved inputs of blocks in host memory.
    """
    set_checkpointing(dit, use_gradient_checkpointing, use_gradient_checkpointing_offload)
    batch, pictures, _, height, width = latents.shape
    dtype = compute_dtype(dit, dit.img_in.weight)
    shown = edit_latents.to(latents).expand(batch, -1, -1, -1).unsqueeze(1)
    tokens = pack(torch.cat([latents, shown], dim=1)).to(dtype)
    velocity = dit(
        hidden_states=tokens,
        timestep=timestep.expand(batch) / 1000,
        encoder_hidden_states=prompt_embeds.to(dtype),
        encoder_hidden_states_mask=prompt_embeds_mask,
        # A token is a patch of 2 x 2 latents. The network takes the last picture for the one to decompose.
        img_shapes=[[(1, height // 2, width // 2)] * (pictures + 1)] * batch,
        additional_t_cond=torch.zeros(batch, dtype=torch.long, device=latents.device),
        attention_kwargs=attention_kwargs_of(dit, kv_cache, batch),
        return_dict=False,
    )[0]
    count = tokens.shape[1] // (pictures + 1) * pictures
    return unpack(velocity[:, :count], height, width).to(latents.dtype)
