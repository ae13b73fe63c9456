"""FLUX.2's units, in the order in which they run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from dsctl_core.errors import UsageError
from dsctl_core.families.flux2.latents import SCALE
from dsctl_core.families.flux2.text import embed, tokenize
from dsctl_core.units import Inputs, PipelineUnit

if TYPE_CHECKING:
    from dsctl_core.families.flux2.pipeline import Flux2Pipeline

MOST_PIXELS = 1024 * 1024  # of a reference picture; a larger one is made smaller


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
