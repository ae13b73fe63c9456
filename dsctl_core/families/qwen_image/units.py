"""Define Qwen-Image's units, in the order in which they run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from dsctl_core.media import units as pictures
from dsctl_core.media.prompts import pad_embeddings
from dsctl_core.units import Inputs, PipelineUnit

if TYPE_CHECKING:
    from dsctl_core.families.qwen_image.pipeline import QwenImagePipeline
    from dsctl_core.pipeline import BasePipeline

logger = logging.getLogger(__name__)

# The prompt is encoded inside the chat template that the model was trained with. The first PREFIX tokens, the system
# prompt, are the same for all prompts and are dropped from the output (Qwen-Image report, arXiv:2508.02324).
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
PREFIX = 34
MAX_TOKENS = 1024
LIMIT = MAX_TOKENS + PREFIX


class InputImageEmbedder(pictures.InputImageEmbedder):
    """Encode the input image as a video of one frame."""

    version = 2  # version 1 also convolved frames of zeros, which rounds differently


class PromptEmbedder(PipelineUnit):
    """Encode the prompt to the last hidden states of the text encoder."""

    output_params = ("prompt_embeds", "prompt_embeds_mask")
    onload_model_names = ("text_encoder",)
    separate_cfg = True
    padded = {"prompt_embeds": "prompt_embeds_mask"}

    def process(self, pipe: QwenImagePipeline, prompt: str | list[str]) -> Inputs:
        """Return `prompt_embeds` (B, T, D), and `prompt_embeds_mask`, (B, T) bool or None if nothing is padded."""
        pipe.load_models_to_device(self.onload_model_names)
        texts = _chats(prompt)
        tokens = pipe.reader("tokenizer")(texts, padding=True, truncation=True, max_length=LIMIT, return_tensors="pt")
        _warn_of_cut_prompts(pipe, texts, tokens.attention_mask.sum(dim=1).tolist(), LIMIT)
        mask = tokens.attention_mask.to(pipe.device)
        # Without the language-model head: its (B, T, 152064) logits are not needed.
        encoder = pipe.component("text_encoder").model
        output = encoder(input_ids=tokens.input_ids.to(pipe.device), attention_mask=mask, use_cache=False)
        rows = [row[keep][PREFIX:] for row, keep in zip(output.last_hidden_state, mask.bool(), strict=True)]
        embeds, valid = pad_embeddings(rows)
        return {"prompt_embeds": embeds, "prompt_embeds_mask": valid}

    def batch_key(self, pipe: BasePipeline, shared: Inputs, posi: Inputs, nega: Inputs) -> list[list[int]]:
        """Return the numbers of tokens: attention over padding uses another kernel, which rounds differently."""
        prompts = [each for each in (posi.get("prompt"), nega.get("negative_prompt")) if each is not None]
        read = [pipe.reader("tokenizer")(_chats(each), truncation=True, max_length=LIMIT).input_ids for each in prompts]
        return [[len(ids) for ids in each] for each in read]


def _chats(prompt: str | list[str]) -> list[str]:
    return [TEMPLATE.format(each) for each in ([prompt] if isinstance(prompt, str) else prompt)]


def _warn_of_cut_prompts(pipe: QwenImagePipeline, texts: list[str], lengths: list[int], limit: int) -> None:
    for text, length in zip(texts, lengths, strict=True):
        if length >= limit:
            actual = len(pipe.reader("tokenizer")(text).input_ids)
            if actual > limit:
                logger.warning(
                    "a prompt of %d tokens is cut to %d, the most that the model takes", actual - PREFIX, MAX_TOKENS
                )
