"""Define the unit that encodes the control images of a control network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageChops
from torch import Tensor
from torch.nn.functional import interpolate

from dsctl_core.control.use import latents_name
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.media.clip import frames_of
from dsctl_core.media.units import check_picture
from dsctl_core.units import Inputs, PipelineUnit

if TYPE_CHECKING:
    from dsctl_core.media.pipeline import LatentPipeline

MASKED = 128  # a pixel of a mask from this value on is masked; masks are 0 to 255


class ControlImageEmbedder(PipelineUnit):
    """Encode the control images, or clips, of the control network `name`, to `NAME_latents`.

    The names of inputs and outputs contain the name of the network, so that several networks can be used at once.
    `column` is the input with the images (None: `NAME_image`). With `mask_column`, the input with the masks of images,
    masked pixels become black, and the latents have one more channel: 1 - mask, of the nearest pixel.
    """

    onload_model_names = ("vae",)

    def __init__(self, name: str, column: str | None = None, mask_column: str | None = None) -> None:
        # The names of inputs depend on the network, so they cannot be read from the signature.
        self.column, self.mask_column = column or f"{name}_image", mask_column
        self.output_params = (latents_name(name),)
        self.required = ("height", "width")
        masks = {} if mask_column is None else {mask_column: None}
        self.optional = {self.column: None, **masks, "tiled": False, "tile_size": None, "tile_stride": None}

    def process(self, pipe: LatentPipeline, **inputs: Any) -> Inputs:
        """Return the latents, one sample per image or clip of a list, or None without control images.

        Raises DsctlError if only some samples of a batch have a control image, and for an image without its mask, or a
        mask without an image.
        """
        values, masks = self._listed(inputs, self.column), self._listed(inputs, self.mask_column)
        if not values:
            if masks:
                raise UsageError(f"{self.mask_column} is given without {self.column}", hint="give the picture too")
            return {self.output_params[0]: None}
        if self.mask_column is not None and len(masks) != len(values):
            raise UsageError(f"{self.column} is given without {self.mask_column}", hint="give its mask too")
        size = (inputs["height"], inputs["width"])
        clips = [frames_of(each) for each in values]
        for clip in clips:
            for frame in clip:
                check_picture(self.column, frame, *size)
        for mask in masks:
            check_picture(str(self.mask_column), mask, *size)
        clips = [[without(clip[0], mask)] for clip, mask in zip(clips, masks, strict=True)] if masks else clips
        pixels = torch.cat([pipe.clip_pixels(clip) for clip in clips])
        pixels = pixels if pipe.latent_space.time_scale is not None else pixels[:, :, 0]
        tiles = (inputs.get("tiled", False), inputs.get("tile_size"), inputs.get("tile_stride"))
        latents = pipe.encode_pixels(pixels, *tiles)
        if masks:
            latents = torch.cat([latents, _kept(masks, latents)], dim=1)
        return {self.output_params[0]: latents}

    def _listed(self, inputs: Inputs, column: str | None) -> list[Any]:
        value = None if column is None else inputs.get(column)
        given = value if isinstance(value, list) else [value]
        absent = [each is None for each in given]
        if any(absent) and not all(absent):
            raise DsctlError(f"one batch has samples with and without {column}", hint="give every row one, or none")
        return [] if all(absent) else given


def without(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """Return `picture` as RGB with the pixels where `mask` is white in black."""
    kept = mask.convert("L").point(lambda value: 0 if value >= MASKED else 255)
    return ImageChops.multiply(picture.convert("RGB"), Image.merge("RGB", [kept] * 3))


def mask_pixels(mask: Image.Image) -> Tensor:
    """Return the pixels of a mask (1, H, W), 0 to 255 in float32."""
    return torch.from_numpy(np.array(mask.convert("L"), dtype=np.float32))[None]


def _kept(masks: list[Image.Image], latents: Tensor) -> Tensor:
    """Return 1 - mask, (B, 1, h, w) in [0, 1], with the size, device and dtype of `latents`."""
    pixels = torch.stack([mask_pixels(mask) for mask in masks])
    return 1 - interpolate(pixels / 255, size=latents.shape[-2:]).to(latents)
