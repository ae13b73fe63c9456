"""Encode FLUX.2's prompts: apply the chat template of each text encoder, and return three of its hidden states.

Legend: token ids and masks are (B, 512); embeddings (B, 512, 3 D), the hidden states of three layers side by side.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from dsctl_core.errors import DsctlError
from dsctl_core.families.flux2.chat import chat_texts
from dsctl_core.families.flux2.family import TEXT_TOKENS

logger = logging.getLogger(__name__)

# text_encoder_out_layers of diffusers' Flux2KleinPipeline and Flux2Pipeline, by the model_type of the text encoder
OUT_LAYERS = {"qwen3": (9, 18, 27), "mistral3": (10, 20, 30)}


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


def layers_taken(encoder: Any) -> tuple[int, ...]:
    """Return the indices of the hidden states to use: 9, 18, 27 of Qwen3, 10, 20, 30 of Mistral Small 3.

    These are fixed, whatever the depth of the encoder, as in the published pipelines. The config.json of a smaller
    encoder names others as `text_encoder_out_layers`. Raises DsctlError for hidden states that the encoder lacks.
    """
    config = encoder.config.get_text_config()
    taken, depth = getattr(config, "text_encoder_out_layers", None), config.num_hidden_layers
    taken = OUT_LAYERS[encoder.config.model_type] if taken is None else taken
    if not (isinstance(taken, list | tuple) and all(type(layer) is int and 0 <= layer <= depth for layer in taken)):
        raise DsctlError(
            f"FLUX.2 takes the hidden states {taken} of its text encoder, which has {depth} layers",
            hint="use the text encoder of the model, or list others in its config.json as text_encoder_out_layers",
        )
    return tuple(taken)


def embed(encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the embeddings of tokens, (B, T, 3 D)."""
    taken = layers_taken(encoder)
    # The language model without its head, whose (B, T, vocabulary) logits are not needed, and without the vision part.
    language = getattr(encoder.model, "language_model", encoder.model)
    states = language(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
    return torch.cat([states[number] for number in taken], dim=-1)
