"""Define Qwen-Image-Layered's units: noise for several pictures of a sample, and the latents of the layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from dsctl_core.media import units as pictures
from dsctl_core.media.layers import composite_of, require_visible
from dsctl_core.media.units import check_picture
from dsctl_core.units import Inputs, PipelineUnit

if TYPE_CHECKING:
    from dsctl_core.families.qwen_image_layered.pipeline import QwenImageLayeredPipeline

# The whole picture of a sample (None: the composite of its layers), then its layers from the bottom to the top.
Stack = Sequence[Image.Image | None]


class NoiseInitializer(pictures.NoiseInitializer):
    """Draw the noise of the whole picture and of `layer_num` layers."""

    def process(  # type: ignore[override]
        self,
        pipe: QwenImageLayeredPipeline,
        height: int,
        width: int,
        layer_num: int = 0,
        seed: int | list[int] | list[int | None] | None = None,
        rand_device: torch.device | str = "cpu",
        noise: Tensor | None = None,
    ) -> Inputs:
        """Return `noise` (B, 1 + layer_num, 16, h, w); see the unit of all families for the other arguments."""
        return super().process(pipe, height, width, seed, rand_device, noise, num_frames=1 + layer_num)


class LayersEmbedder(PipelineUnit):
    """Encode the layers, which in training are the target, and the picture to decompose."""

    output_params = ("input_latents", "edit_latents")
    onload_model_names = ("vae",)

    def process(
        self,
        pipe: QwenImageLayeredPipeline,
        height: int,
        width: int,
        input_layers: Sequence[Stack] | None = None,
        edit_image: Sequence[Image.Image | None] | None = None,
        tiled: bool = False,
        tile_size: int | None = None,
        tile_stride: int | None = None,
    ) -> Inputs:
        """Return `input_latents` (B, F, 16, h, w), None without layers, and `edit_latents` (B, 16, h, w).

        Args:
            pipe: The pipeline.
            height: Height of the pictures in pixels.
            width: Width of the pictures in pixels.
            input_layers: The whole picture and the layers of each sample.
            edit_image: The picture to decompose of each sample, or one for all (None: the whole picture).
            tiled: Whether the VAE works in tiles.
            tile_size: Size of a tile in pixels (None: the default of the VAE).
            tile_stride: Distance of tiles in pixels (None: the default of the VAE).
        """

        def encoded(what: str, images: Sequence[Image.Image]) -> Tensor:
            for image in images:
                check_picture(what, image, height, width)
            return pipe.encode_pictures(images, tiled, tile_size, tile_stride)

        if input_layers is None:
            return {
                "input_latents": None,
                "edit_latents": None
                if edit_image is None
                else encoded("picture", [each for each in edit_image if each]),
            }
        stacks = [completed(stack) for stack in input_layers]
        latents = torch.stack([encoded("layer", places) for places in zip(*stacks, strict=True)], dim=1)
        if edit_image is None or not any(edit_image):
            return {"input_latents": latents, "edit_latents": latents[:, 0]}
        whole = [stack[0] if own is None else own for stack, own in zip(stacks, edit_image, strict=True)]
        return {"input_latents": latents, "edit_latents": encoded("picture", whole)}


def completed(stack: Stack) -> list[Image.Image]:
    """Return a stack with its whole picture; raise DsctlError for a layer that hides those below it."""
    layers = [layer for layer in stack[1:] if layer is not None]
    require_visible(layers)
    return [composite_of(layers) if stack[0] is None else stack[0], *layers]
