"""Encode Z-Image's prompts: apply the chat that the model was trained with, and return a hidden state of each token.

With reference images (Omni) the chat has a place for each of them, and is encoded in pieces between these places, each
piece for itself. All but one of the pieces are the same for all prompts.

Legend: embeddings of one text are (T, D), without padding.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from dsctl_core.errors import DsctlError
from dsctl_core.families.z_image.family import TEXT_TOKENS

logger = logging.getLogger(__name__)

USER, REPLY = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
OPEN, CLOSE = "<|vision_start|>", "<|vision_end|>"
LAYER = -2  # of the hidden states: the output of the last layer but one


def chats(tokenizer: Any, prompts: list[str], omni: bool, references: int = 0) -> list[str]:
    """Return the text around each prompt; with `references` it is the piece between the last of them and the answer."""
    if references:
        return [f"{CLOSE}{prompt}{REPLY}{OPEN}" for prompt in prompts]
    if omni:
        return [f"{USER}{prompt}{REPLY}" for prompt in prompts]
    if not tokenizer.chat_template:
        raise DsctlError("the tokenizer has no chat template", hint="use the tokenizer that the model came with")
    asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
    settings = {"add_generation_prompt": True, "enable_thinking": True}
    return tokenizer.apply_chat_template(asked, tokenize=False, **settings)


def fixed_pieces(references: int) -> list[str]:
    """Return the pieces of the chat that do not depend on the prompt: those before its piece, and the one after it."""
    return [USER + OPEN, *[CLOSE + OPEN] * (references - 1), CLOSE + "<|im_end|>"]


def embed(tokenizer: Any, encoder: Any, texts: list[str], device: torch.device) -> list[Tensor]:
    """Return the embeddings (T, D) of each text; a text that is too long is truncated, with a warning."""
    for ids in tokenizer(texts).input_ids:
        if len(ids) > TEXT_TOKENS:
            logger.warning(
                "a prompt is cut: with its chat it is %d tokens, and the model takes %d", len(ids), TEXT_TOKENS
            )
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=TEXT_TOKENS, return_tensors="pt")
    mask = tokens.attention_mask.to(device).bool()
    # The language model without its head, whose (B, T, vocabulary) logits are not needed.
    language = getattr(encoder, "model", encoder)
    output = language(
        input_ids=tokens.input_ids.to(device),
        attention_mask=mask,
        output_hidden_states=True,
        use_cache=False,
    )
    return [row[keep] for row, keep in zip(output.hidden_states[LAYER], mask, strict=True)]
