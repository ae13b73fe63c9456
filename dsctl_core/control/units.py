"""Define the unit that encodes the control images of a control network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dsctl_core.control.use import latents_name
from dsctl_core.errors import DsctlError
from dsctl_core.media.clip import frames_of
from dsctl_core.media.units import check_picture
from dsctl_core.units import Inputs, PipelineUnit

if TYPE_CHECKING:
    from dsctl_core.media.pipeline import LatentPipeline


class ControlImageEmbedder(PipelineUnit):
    """Encode the control images, or clips, of the control network `name`: from `NAME_image` to `NAME_latents`.

    The names of inputs and outputs contain the name of the network, so that several networks can be used at once.
    """

    onload_model_names = ("vae",)

    def __init__(self, name: str) -> None:
        # The names of inputs depend on the network, so they cannot be read from the signature.
        self.column, self.output_params = f"{name}_image", (latents_name(name),)
        self.required = ("height", "width")
        self.optional = {self.column: None, "tiled": False, "tile_size": None, "tile_stride": None}

    def process(self, pipe: LatentPipeline, **inputs: Any) -> Inputs:
        """Return the latents, one sample per image or clip of a list, or None without control images.

        Raises DsctlError if only some samples of a batch have a control image.
        """
        value = inputs.get(self.column)
        given = value if isinstance(value, list) else [value]
        absent = [each is None for each in given]
        if all(absent):
            return {self.output_params[0]: None}
        if any(absent):
            raise DsctlError(
                f"one batch has samples with and without {self.column}", hint="give every row one, or none"
            )
        clips = [frames_of(each) for each in given]
        for clip in clips:
            for frame in clip:
                check_picture(self.column, frame, inputs["height"], inputs["width"])
        pixels = torch.cat([pipe.clip_pixels(clip) for clip in clips])
        pixels = pixels if pipe.latent_space.time_scale is not None else pixels[:, :, 0]
        tiles = (inputs.get("tiled", False), inputs.get("tile_size"), inputs.get("tile_stride"))
        return {self.output_params[0]: pipe.encode_pixels(pixels, *tiles)}
