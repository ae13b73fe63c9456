"""Compute the joint attention of a block: in compiled blocks, and for attention to more tokens than those of the model.

Legend: B samples, T prompt tokens, S image tokens, E cached tokens, H heads, D channels per head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_qwenimage import (
    QwenDoubleStreamAttnProcessor2_0,
    apply_rotary_emb_qwen,
)
from torch import Tensor

from dsctl_core.media.rotary import RealRotary, rotated, use_real_rotary

Rotate = Callable[[Tensor, Tensor], Tensor]


class RealRotaryAttention(RealRotary, QwenDoubleStreamAttnProcessor2_0):
    """The attention processor of blocks that are compiled."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        encoder_hidden_states_mask: Any = None,
        attention_mask: Any = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        """Return the attention outputs of the image tokens (B, S, H*D) and of the prompt tokens (B, T, H*D)."""
        inputs = (hidden_states, encoder_hidden_states, encoder_hidden_states_mask, image_rotary_emb)
        return attend(self, attn, *inputs, rotated, None)


def for_compiler(dit: Any) -> None:
    """Have the attention of `dit` turn queries and keys in real numbers."""
    use_real_rotary(dit, QwenDoubleStreamAttnProcessor2_0, RealRotaryAttention)


def attend(
    processor: Any,
    attn: Any,
    pictures: Tensor,
    prompts: Tensor,
    prompt_mask: Tensor | None,
    turns: tuple[Tensor, Tensor] | None,
    rotate: Rotate,
    cached: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Return the outputs of image tokens (B, S, H*D) and prompt tokens (B, T, H*D), which attend to `cached` too."""
    of_picture = (attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k)
    of_prompt = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj, attn.norm_added_q, attn.norm_added_k)
    freqs, prompt_freqs = turns if turns is not None else (None, None)
    own = _projected(pictures, *of_picture, freqs, attn.heads, rotate)
    prompted = _projected(prompts, *of_prompt, prompt_freqs, attn.heads, rotate)
    query, key, value = (torch.cat(pair, dim=1) for pair in zip(prompted, own, strict=True))
    others = pictures.shape[1]
    if cached is not None:
        key, value = (torch.cat([each, more.to(each)], dim=1) for each, more in zip((key, value), cached, strict=True))
        others += cached[0].shape[1]
    attended = dispatch_attention_fn(
        query,
        key,
        value,
        attn_mask=_what_counts(prompt_mask, others),
        backend=processor._attention_backend,
        parallel_config=processor._parallel_config,
    )
    flat = attended.flatten(2, 3).to(query.dtype)  # (B, T + S, H, D) -> (B, T + S, H*D)
    tokens = prompts.shape[1]
    shown = flat[:, tokens:].contiguous()
    for layer in attn.to_out:
        shown = layer(shown)
    return shown, attn.to_add_out(flat[:, :tokens].contiguous())


def in_complex_numbers(tokens: Tensor, turns: Tensor) -> Tensor:
    """Return queries or keys (B, S, H, D), turned by `turns`, complex (S, D/2), as diffusers does."""
    result: Any = apply_rotary_emb_qwen(tokens, turns, use_real=False)
    return result


def _projected(
    hidden: Tensor,
    to_q: Any,
    to_k: Any,
    to_v: Any,
    norm_q: Any,
    norm_k: Any,
    freqs: Tensor | None,
    heads: int,
    rotate: Rotate,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and value of one stream, (B, T, H, D) each; norm and rotary embedding are applied."""
    query, key, value = (layer(hidden).unflatten(-1, (heads, -1)) for layer in (to_q, to_k, to_v))
    query = query if norm_q is None else norm_q(query)
    key = key if norm_k is None else norm_k(key)
    if freqs is not None:
        query, key = rotate(query, freqs), rotate(key, freqs)
    return query, key, value


def _what_counts(prompt_mask: Tensor | None, others: int) -> Tensor | None:
    """Return the attention mask (B, 1, 1, T + S + E), True for all tokens except the padding of the prompt."""
    if prompt_mask is None:
        return None
    mask = torch.cat([prompt_mask.bool(), prompt_mask.new_ones(len(prompt_mask), others, dtype=torch.bool)], dim=1)
    return mask[:, None, None, :]
