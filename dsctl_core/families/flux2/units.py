"""FLUX.2's units, in the order in which they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.flux2.latents import SCALE, pack
from dsctl_core.families.flux2.text import embed, tokenize
from dsctl_core.units import Inputs, PipelineUnit

if TYPE_CHECKING:
    from dsctl_core.families.flux2.pipeline import Flux2Pipeline

MOST_PIXELS = 1024 * 1024  # of a reference picture; a larger one is made smaller

Pictures = Image.Image | list[Image.Image] | list[list[Image.Image]]


class EditImageEmbedder(PipelineUnit):
    """Encode the reference pictures that are edited or combined, which go to the transformer beside the one made."""

    output_params = ("edit_latents", "edit_sizes")
    onload_model_names = ("vae",)

    def process(
        self,
        pipe: Flux2Pipeline,
        edit_image: Pictures | None = None,
        tiled: bool = False,
        tile_size: int | None = None,
        tile_stride: int | None = None,
    ) -> Inputs:
        """Return the tokens `edit_latents` (B, N, 128) float32 and `edit_sizes` ((h, w), ...), or None for both.

        One picture, or a list of them, serves every sample (B is 1); a list of lists has each sample's own, and the
        first picture of every sample must be of one size, and so on.
        """
        if edit_image is None:
            return {"edit_latents": None, "edit_sizes": None}
        samples = [[fitted(picture) for picture in own] for own in _by_sample(edit_image)]
        for own in samples[1:]:
            if [picture.size for picture in own] != [picture.size for picture in samples[0]]:
                raise DsctlError(
                    "one batch has reference pictures of different numbers or sizes",
                    hint="give a fixed --height and --width, or a batch size of 1",
                )
        tokens, sizes = [], []
        for pictures in zip(*samples, strict=True):  # the first of every sample, the second of every sample, ...
            latents = pipe.encode_pictures(pictures, tiled, tile_size, tile_stride)
            tokens.append(pack(latents))
            sizes.append((latents.shape[2], latents.shape[3]))
        return {"edit_latents": torch.cat(tokens, dim=1), "edit_sizes": tuple(sizes)}


class PromptEmbedder(PipelineUnit):
    """Turn the prompt into hidden states of three of the text encoder's layers."""

    output_params = ("prompt_embeds", "prompt_embeds_mask")
    onload_model_names = ("text_encoder",)
    separate_cfg = True
    # All prompts have one length; what is put behind them, as a template's own tokens, can have several.
    padded = {"prompt_embeds": "prompt_embeds_mask"}

    def process(self, pipe: Flux2Pipeline, prompt: str | list[str]) -> Inputs:
        """Return `prompt_embeds` (B, 512, 3 D), the padding among them, so that `prompt_embeds_mask` is None."""
        pipe.load_models_to_device(self.onload_model_names)
        encoder = pipe.component("text_encoder")
        ids, mask = tokenize(pipe.reader("tokenizer"), encoder, [prompt] if isinstance(prompt, str) else prompt)
        embeds = embed(encoder, ids.to(pipe.device), mask.to(pipe.device))
        return {"prompt_embeds": embeds, "prompt_embeds_mask": None}


def fitted(picture: Image.Image) -> Image.Image:
    """Return a reference picture as the model takes it: at most a megapixel, sides cut evenly to multiples of 16."""
    width, height = picture.size
    if width * height > MOST_PIXELS:
        scale = (MOST_PIXELS / (width * height)) ** 0.5
        picture = picture.resize((int(width * scale), int(height * scale)), Image.Resampling.LANCZOS)
        width, height = picture.size
    if min(width, height) < SCALE:
        raise UsageError(
            f"a reference picture is {width}x{height}, but each side needs {SCALE} pixels at least",
            hint="give a larger picture",
        )
    left, top = (width - width // SCALE * SCALE) // 2, (height - height // SCALE * SCALE) // 2
    return picture.crop((left, top, left + width // SCALE * SCALE, top + height // SCALE * SCALE))


def _by_sample(pictures: Pictures) -> Sequence[Sequence[Image.Image]]:
    """Return the reference pictures of each sample; one list alone where all have the same."""
    listed = pictures if isinstance(pictures, list) else [pictures]
    if not listed:
        raise UsageError("the list of reference pictures is empty", hint="leave it out, or give one at least")
    if isinstance(listed[0], list):
        return [each if isinstance(each, list) else [each] for each in listed]
    return [[each for each in listed if isinstance(each, Image.Image)]]
