"""Define LatentPipeline, which generates latents from a prompt, and PicturePipeline, which decodes them to images.

Legend: latents are (B, c, h, w) float32 in the `latent_space` of the family, for clips (B, c, t, h, w).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dsctl_core.errors import DsctlError, UsageError, unknown_name
from dsctl_core.media.latent_space import LatentSpace
from dsctl_core.media.vae_methods import add_tiled_methods
from dsctl_core.pipeline import BasePipeline, ProgressBar
from dsctl_core.readable import counted
from dsctl_core.units import Inputs

OWN = ("cfg_scale", "height", "width", "num_frames")  # inputs that a model has values of its own for


class LatentPipeline(BasePipeline):
    """Base class of pipelines with a VAE; a family sets `latent_space` and the attributes of BasePipeline."""

    latent_space: LatentSpace

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "vae" in self.components:
            add_tiled_methods(self.component("vae"), self.latent_space)

    def tokens(self, height: int, width: int, frames: int = 1) -> int:
        """Return the number of tokens of an image, or of a clip with `frames` frames; sizes are in pixels."""
        return super().tokens(height, width) * self.latent_space.latent_frames(frames)

    def generate(
        self,
        *,
        prompt: str | list[str],
        negative_prompt: str | list[str],
        num_inference_steps: int | None,
        denoising_strength: float,
        progress_bar_cmd: ProgressBar,
        shared: Inputs,
    ) -> Tensor:
        """Run the units and the denoising loop, and return the clean latents, (B, c, h, w) or (B, c, t, h, w).

        Args:
            prompt: A prompt, or one per sample.
            negative_prompt: A negative prompt for all samples, or one per sample.
            num_inference_steps: Number of denoising steps (None: the model's own).
            denoising_strength: Noise level at which denoising starts, before the shift; 1 is pure noise.
            progress_bar_cmd: Wraps the timesteps, as `tqdm` does.
            shared: The other inputs of the units. A guidance scale, a size or a number of frames of None is the model's
                own, and a single seed is that of every prompt.
        """
        shared = {name: self.default(name, shared[name]) if name in OWN else shared[name] for name in shared}
        shared |= {"seed": for_each_prompt("seed", shared["seed"], prompt)} if "seed" in shared else {}
        tokens = self.tokens(shared["height"], shared["width"], shared.get("num_frames", 1))
        steps = self.default("num_inference_steps", num_inference_steps)
        self.scheduler.set_timesteps(steps, denoising_strength, dynamic_shift_len=tokens, solver=self.solver)
        posi: Inputs = {"prompt": prompt}
        nega: Inputs = {"negative_prompt": for_each_prompt("negative prompt", negative_prompt, prompt)}
        shared, posi, nega = self.run_units(shared, posi, nega)
        return self.denoise(shared, posi, nega, cfg_scale=shared["cfg_scale"], progress_bar_cmd=progress_bar_cmd)

    def steered(self, control_inputs: Mapping[str, Any] | None, controls: Mapping[str, Any] | None) -> Inputs:
        """Return the inputs for the side networks: `control_inputs` by name, and `controls`, the use of each network.

        Raises UsageError for an input that no side network reads, and for the use of a network that there is not.
        """
        columns = [column for side_network in self.side_networks for column in side_network.columns]
        networks = [side_network.name for side_network in self.side_networks]
        for what, given, known in (("control input", control_inputs, columns), ("network", controls, networks)):
            for name in given or {}:
                if name not in known:
                    hint = None if known else "load a control network first"
                    raise unknown_name(what, name, known, listing=hint)
        return {**(control_inputs or {}), **({} if controls is None else {"controls": controls})}

    def embedded_guidance(self, asked: float | None, default: float) -> float | None:
        """Return `asked` or `default`, or None for a network that takes no guidance as an input.

        Raises UsageError for a guidance asked of a network that takes none.
        """
        if "dit" not in self.components:  # only prompts are encoded, as before training: there is no guidance
            return asked
        if self.component("dit").config.guidance_embeds:
            return default if asked is None else asked
        if asked is not None:
            raise UsageError("these weights take no embedded guidance", hint="use the cfg scale instead")
        return None

    def encode_pictures(
        self, pictures: Sequence[Image.Image], tiled: bool, tile_size: int | None, tile_stride: int | None
    ) -> Tensor:
        """Return the latents of images of one size; a tile size or stride of None is the default of the VAE."""
        pixels = torch.cat([self.preprocess_image(picture) for picture in pictures])
        if self.latent_space.time_scale is not None:
            pixels = pixels.unsqueeze(2)
        return self.encode_pixels(pixels, tiled, tile_size, tile_stride)

    def clip_pixels(self, frames: Sequence[Image.Image]) -> Tensor:
        """Return the frames of a clip as a tensor (1, 3, T, H, W) in [-1, 1]."""
        return torch.stack([self.preprocess_image(frame) for frame in frames], dim=2)

    def encode_pixels(self, pixels: Tensor, tiled: bool, tile_size: int | None, tile_stride: int | None) -> Tensor:
        """Return the latents of images (B, 3, H, W), or of clips (B, 3, T, H, W), in [-1, 1]."""
        self.load_models_to_device(("vae",))
        sizes = self._tiles(tile_size, tile_stride)
        return self.latent_space.encode(self.component("vae"), pixels.to(self.device), tiled, *sizes)

    def decode_pixels(self, latents: Tensor, tiled: bool, tile_size: int | None, tile_stride: int | None) -> Tensor:
        """Decode clean latents to images (B, 3, H, W), or clips (B, 3, T, H, W), in [-1, 1]."""
        self.load_models_to_device(("vae",))
        placed, sizes = latents.to(self.device, torch.float32), self._tiles(tile_size, tile_stride)
        return self.latent_space.decode(self.component("vae"), placed, tiled, *sizes)

    def _tiles(self, size: int | None, stride: int | None) -> tuple[int, int]:
        own = (self.latent_space.tile_size, self.latent_space.tile_stride)
        return own[0] if size is None else size, own[1] if stride is None else stride


class PicturePipeline(LatentPipeline):
    """Base class of pipelines that generate images."""

    def draw(
        self,
        *,
        prompt: str | list[str],
        negative_prompt: str | list[str],
        num_inference_steps: int | None,
        denoising_strength: float,
        progress_bar_cmd: ProgressBar,
        shared: Inputs,
    ) -> Image.Image | list[Image.Image]:
        """Generate and decode: an image for a prompt, and a list of images for a list of prompts.

        The parameters are those of `generate`; the tiles in `shared` are those of decoding too.
        """
        latents = self.generate(
            prompt=prompt,
            negative_prompt=negative_prompt,
            num_inference_steps=num_inference_steps,
            denoising_strength=denoising_strength,
            progress_bar_cmd=progress_bar_cmd,
            shared=shared,
        )
        pictures = self.decode_latents(latents, shared["tiled"], shared["tile_size"], shared["tile_stride"])
        return pictures if isinstance(prompt, list) else pictures[0]

    def decode_latents(
        self, latents: Tensor, tiled: bool = False, tile_size: int | None = None, tile_stride: int | None = None
    ) -> list[Image.Image]:
        """Decode clean latents (B, c, h, w) to images, optionally in tiles of `tile_size` pixels."""
        return self.vae_output_to_image(self.decode_pixels(latents, tiled, tile_size, tile_stride))


def for_each_prompt(what: str, value: Any, prompt: str | list[str]) -> Any:
    """Return `value` repeated for each prompt of a list; raise an error if `value` is a list of another length.

    `what` is the name of the value in the message.
    """
    count = len(prompt) if isinstance(prompt, list) else 1
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise UsageError(
            f"{counted(len(value), what)} for {counted(count, 'prompt')}", hint="give one, or one for each prompt"
        )
    return value


def picture_inputs(rows: Sequence[Inputs]) -> tuple[Inputs, Inputs, Inputs]:
    """Return the inputs (shared, posi, nega) of a training batch that all image families have.

    A row has `image`, of one size in all rows, `prompt`, and optionally `seed`, the seed of the sample.
    """
    images = [picture_from_row(row, "image") for row in rows]
    for image in images[1:]:
        if image.size != images[0].size:
            raise DsctlError(
                f"one batch has pictures of {size_of(images[0])} and of {size_of(image)}",
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
    return shared, {"prompt": [from_row(row, "prompt") for row in rows]}, {"negative_prompt": ""}


def reference_inputs(rows: Sequence[Inputs]) -> Inputs:
    """Return the input `edit_image` of rows that may have reference images: a list per row, or None if none has any."""
    references = [pictures_from_row(row, "edit_image") for row in rows]
    return {"edit_image": references if any(references) else None}


def from_row(row: Inputs, name: str) -> Any:
    """Return the value of the column `name` of a row; raise DsctlError if it is missing."""
    if row.get(name) is None:
        also = "" if name in ("image", "prompt") else f", and {name}"
        raise DsctlError(
            f"row {row.get('_row', '?')} has no {name!r}", hint=f"the dataset needs image and prompt{also}"
        )
    return row[name]


def picture_from_row(row: Inputs, name: str) -> Image.Image:
    """Return the image in the column `name` of a row; raise DsctlError if there is none, or something else."""
    value = from_row(row, name)
    if not isinstance(value, Image.Image):
        raise _no_picture(name, value)
    return value


def pictures_from_row(row: Inputs, name: str) -> list[Image.Image]:
    """Return the images in the column `name` of a row: one, several of a list, or none of an empty cell.

    Raises DsctlError for a row without this column, and for anything else in it.
    """
    value = row[name] if name in row else from_row(row, name)
    listed = [] if value is None else value if isinstance(value, list) else [value]
    for each in listed:
        if not isinstance(each, Image.Image):
            raise _no_picture(name, each)
    return listed


def _no_picture(name: str, value: Any) -> DsctlError:
    what = f"the text {value!r}" if isinstance(value, str) else f"a {type(value).__name__}"
    return DsctlError(
        f"{name!r} is {what}, not a picture",
        hint=f"name the column of files: --data-file-keys image,{name}" if name != "image" else "give one picture",
    )


def size_of(image: Image.Image) -> str:
    """Return the size of an image as "WIDTHxHEIGHT"."""
    return f"{image.width}x{image.height}"
