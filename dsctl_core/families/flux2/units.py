"""Define FLUX.2's units, in the order in which they run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from dsctl_core.errors import UsageError
from dsctl_core.families.flux2.latents import SCALE
from dsctl_core.families.flux2.text import embed, tokenize
from dsctl_core.media.references import center_cropped
from dsctl_core.units import Inputs, PipelineUnit

if TYPE_CHECKING:
    from dsctl_core.families.flux2.pipeline import Flux2Pipeline

MOST_PIXELS = 1024 * 1024  # maximum size of a reference image; larger ones are scaled down


class PromptEmbedder(PipelineUnit):
    """Encode the prompt to the hidden states of three layers of the text encoder."""

    output_params = ("prompt_embeds", "prompt_embeds_mask")
    onload_model_names = ("text_encoder",)
    separate_cfg = True
    # All prompts have one length, but tokens that are appended to them, such as those of a template, can differ.
    padded = {"prompt_embeds": "prompt_embeds_mask"}

    def process(self, pipe: Flux2Pipeline, prompt: str | list[str]) -> Inputs:
        """Return `prompt_embeds` (B, 512, 3 D), including padding, and `prompt_embeds_mask`, which is None."""
        pipe.load_models_to_device(self.onload_model_names)
        encoder = pipe.component("text_encoder")
        ids, mask = tokenize(pipe.reader("tokenizer"), encoder, [prompt] if isinstance(prompt, str) else prompt)
        embeds = embed(encoder, ids.to(pipe.device), mask.to(pipe.device))
        return {"prompt_embeds": embeds, "prompt_embeds_mask": None}


def fitted(picture: Image.Image) -> Image.Image:
    """Return a reference image scaled to at most a megapixel, with its sides center-cropped to multiples of 16."""
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
    return center_cropped(picture, SCALE)
