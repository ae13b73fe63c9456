"""VideoPipeline: from a prompt to latents to clips, and from dataset rows to inputs, for families of video.

Legend: latents are (B, c, t, h, w) float32 in the family's `latent_space`, which has a `time_scale`; pixels are
(B, 3, T, H, W) in [-1, 1]. A picture is a clip of one frame.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from dsctl_core.errors import DsctlError
from dsctl_core.media.clip import Clip, frames_of
from dsctl_core.media.pipeline import LatentPipeline, from_row, size_of
from dsctl_core.units import Inputs


class VideoPipeline(LatentPipeline):
    """A pipeline that makes clips; without another rate they are shown as `family.defaults["fps"]` says."""

    def decode_latents(
        self,
        latents: Tensor,
        tiled: bool = False,
        tile_size: int | None = None,
        tile_stride: int | None = None,
        fps: float | None = None,
    ) -> list[Clip]:
        """Return the clips of clean latents."""
        pixels = self.decode_pixels(latents, tiled, tile_size, tile_stride)
        rate = self.family.defaults["fps"] if fps is None else fps
        return [Clip(tuple(self.vae_output_to_image(clip.transpose(0, 1))), rate) for clip in pixels]


def video_inputs(rows: Sequence[Inputs]) -> tuple[Inputs, Inputs, Inputs]:
    """Return the (shared, posi, nega) inputs of a training batch that every family of video takes.

    A row has `video`, a list of frames, or `image`, a picture, all of one size and number of frames; `prompt`; and may
    have `seed`, its sample's own.
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
    """Return the frames of a row's `video`, or of its `image`, which is one."""
    return frames_of(row["video"] if row.get("video") is not None else from_row(row, "image"))


def _form(clip: Sequence[Image.Image]) -> str:
    return f"{len(clip)} frames of {size_of(clip[0])}"
