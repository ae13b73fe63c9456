"""Encode Z-Image's prompts in their chat: return a hidden state of each token.

Legend: embeddings of one text are (T, D), without padding.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from dsctl_core.families.z_image.family import TEXT_TOKENS

logger = logging.getLogger(__name__)

LAYER = -2  # of the hidden states: the output of the last layer but one


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
