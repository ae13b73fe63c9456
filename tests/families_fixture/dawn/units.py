"""Dawn's own units: the prompt, the first frame as the image encoder sees it, and what of a clip counts."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dsctl_core.units import Inputs, PipelineUnit


class PromptEmbedder(PipelineUnit):
    """Turn the prompt into the text encoder's last hidden states, those of padding zero."""

    output_params = ("prompt_embeds",)
    onload_model_names = ("text_encoder",)
    separate_cfg = True

    def process(self, pipe: Any, prompt: str | list[str]) -> Inputs:
        """Return `prompt_embeds` (B, 24, 32)."""
        pipe.load_models_to_device(self.onload_model_names)
        tokenizer, rows = pipe.reader("tokenizer"), []
        for each in [prompt] if isinstance(prompt, str) else prompt:
            ids = tokenizer(each + "\n", return_tensors="pt", truncation=True, max_length=24).input_ids.to(pipe.device)
            rows.append(pipe.component("text_encoder")(input_ids=ids).last_hidden_state[0])
        rows.append(torch.zeros(24, rows[0].shape[1]).to(rows[0]))
        return {"prompt_embeds": pad_sequence(rows, batch_first=True)[:-1]}


class FirstImageEmbedder(PipelineUnit):
    """Show the first picture to the image encoder, where the weights have one."""

    output_params = ("image_embeds",)
    onload_model_names = ("image_encoder",)

    def process(self, pipe: Any, first_image: list[Image.Image] | None = None) -> Inputs:
        """Return `image_embeds` (B, 5, 16), or None."""
        if first_image is None or not pipe.has("image_encoder"):
            return {"image_embeds": None}
        pipe.load_models_to_device(self.onload_model_names)
        pixels = [pipe.reader("processor")(images=[each], return_tensors="pt").pixel_values for each in first_image]
        encoder = pipe.component("image_encoder")
        seen = [encoder(each.to(pipe.device, pipe.torch_dtype)).last_hidden_state for each in pixels]
        return {"image_embeds": torch.cat(seen)}


class FirstFrameMask(PipelineUnit):
    """Leave the first frame out of the loss where it is given."""

    output_params = ("loss_mask",)

    def process(
        self, pipe: Any, height: int, width: int, num_frames: int, first_image: list[Image.Image] | None = None
    ) -> Inputs:
        """Return `loss_mask` (B, 1, t, 1, 1), 0 for the first of several latent frames, or None."""
        frames = pipe.latent_space.latent_frames(num_frames)
        if first_image is None or frames == 1:
            return {"loss_mask": None}
        mask: Tensor = torch.ones(len(first_image), 1, frames, 1, 1, device=pipe.device)
        mask[:, :, 0] = 0
        return {"loss_mask": mask}
