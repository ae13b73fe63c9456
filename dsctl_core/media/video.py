"""Define VideoPipeline, the base class of video families, and turn dataset rows into its inputs.

Legend: latents are (B, c, t, h, w) float32 in the `latent_space` of the family, which has a `time_scale`; pixels are
(B, 3, T, H, W) in [-1, 1]. An image is a clip of one frame.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from dsctl_core.errors import DsctlError
from dsctl_core.media.clip import Clip, frames_of
from dsctl_core.media.pipeline import LatentPipeline, from_row, size_of
from dsctl_core.readable import counted
from dsctl_core.units import Inputs


class VideoPipeline(LatentPipeline):
    """Base class of pipelines that generate clips; the default frame rate is `defaults["fps"]`."""

    def decode_latents(
        self,
        latents: Tensor,
        tiled: bool = False,
        tile_size: int | None = None,
        tile_stride: int | None = None,
        fps: float | None = None,
    ) -> list[Clip]:
        """Decode clean latents (B, c, t, h, w) to clips.

        Args:
            latents: The clean latents.
            tiled: Whether the VAE works in tiles.
            tile_size: Size of a tile in pixels (None: the default of the VAE).
            tile_stride: Distance of tiles in pixels (None: the default of the VAE).
            fps: Frame rate in frames per second (None: the model's own).
        """
        pixels = self.decode_pixels(latents, tiled, tile_size, tile_stride)
        rate = self.default("fps", fps)
        return [Clip(tuple(self.vae_output_to_image(clip.transpose(0, 1))), rate) for clip in pixels]


def video_inputs(rows: Sequence[Inputs]) -> tuple[Inputs, Inputs, Inputs]:
    """Return the inputs (shared, posi, nega) of a training batch that all video families have.

    A row has `video`, a list of frames, or `image`, with one size and number of frames in all rows; `prompt`; and
    optionally `seed`, the seed of the sample.
    """
    clips = [clip_of(row) for row in rows]
    for clip in clips[1:]:
        if (len(clip), clip[0].size) != (len(clips[0]), clips[0][0].size):
            raise DsctlError(
                f"one batch has clips of {_form(clips[0])} and of {_form(clip)}",
                hint="give a fixed --height, --width and --num-frames, or a batch size of 1",
            )
    shared: Inputs = {
        "input_video": clips,
        "height": clips[0][0].height,
        "width": clips[0][0].width,
        "num_frames": len(clips[0]),
        "cfg_scale": 1,
        "seed": [row.get("seed") for row in rows],
        "rand_device": "cpu",
    }
    return shared, {"prompt": [from_row(row, "prompt") for row in rows]}, {"negative_prompt": ""}


def clip_of(row: Inputs) -> list[Image.Image]:
    """Return the frames of the `video` of a row, or its `image` as one frame."""
    return frames_of(row["video"] if row.get("video") is not None else from_row(row, "image"))


def _form(clip: Sequence[Image.Image]) -> str:
    return f"{counted(len(clip), 'frame')} of {size_of(clip[0])}"
