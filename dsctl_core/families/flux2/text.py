"""Encode FLUX.2's prompts: apply the chat template of each text encoder, and return three of its hidden states.

Legend: token ids and masks are (B, 512); embeddings (B, 512, 3 D), the hidden states of three layers side by side.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from dsctl_core.families.flux2.chat import chat_texts
from dsctl_core.families.flux2.family import TEXT_TOKENS

logger = logging.getLogger(__name__)


def tokenize(tokenizer: Any, encoder: Any, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Return the token ids and the attention mask of the chats with `prompts`, (B, 512) each.

    Prompts are padded or truncated to 512 tokens, with a warning for truncation. The transformer was trained to attend
    to the padding too.
    """
    texts = chat_texts(tokenizer, prompts, with_system_message=encoder.config.model_type == "mistral3")
    read = tokenizer(texts, add_special_tokens=False)
    for ids in read.input_ids:
        if len(ids) > TEXT_TOKENS:
            logger.warning(
                "a prompt is cut: with its chat it is %d tokens, and the model takes %d", len(ids), TEXT_TOKENS
            )
    tokens = tokenizer(
        texts,
        add_special_tokens=False,
        padding="max_length",
        truncation=True,
        max_length=TEXT_TOKENS,
        return_tensors="pt",
    )
    return tokens.input_ids, tokens.attention_mask


def layers_taken(depth: int) -> tuple[int, int, int]:
    """Return the indices of the hidden states to use: after a quarter, a half and three quarters of `depth` layers.

    These are 9, 18 and 27 of the 36 layers of klein, and 10, 20 and 30 of the 40 layers of dev.
    """
    return depth // 4, depth // 2, 3 * depth // 4


def embed(encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the embeddings of tokens, (B, T, 3 D)."""
    # The language model without its head, whose (B, T, vocabulary) logits are not needed, and without the vision part.
    language = getattr(encoder.model, "language_model", encoder.model)
    states = language(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
    return torch.cat([states[number] for number in layers_taken(len(states) - 1)], dim=-1)
