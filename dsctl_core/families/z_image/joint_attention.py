"""Compute the attention of a block: in compiled blocks, and for attention to more tokens than those of the model.

Legend: B samples, S tokens of image and prompt, E cached tokens, H heads, D channels per head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_z_image import ZSingleStreamAttnProcessor
from torch import Tensor

from dsctl_core.media.rotary import RealRotary, rotated, use_real_rotary


class RealRotaryAttention(RealRotary, ZSingleStreamAttnProcessor):
    """The attention processor of blocks that are compiled."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Tensor | None = None,
    ) -> Tensor:
        """Return the attention output (B, S, H*D). `attention_mask` is (B, S) or None, `freqs_cis` (B, S, D/2)."""
        return attend(self, attn, hidden_states, attention_mask, freqs_cis, rotated, None)


def for_compiler(dit: Any) -> None:
    """Have the attention of `dit` turn queries and keys in real numbers."""
    use_real_rotary(dit, ZSingleStreamAttnProcessor, RealRotaryAttention)


def attend(
    processor: Any,
    attn: Any,
    hidden: Tensor,
    mask: Tensor | None,
    turns: Tensor | None,
    rotate: Callable[[Tensor, Tensor], Tensor],
    cached: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Return the attention output (B, S, H*D) of tokens that attend to `cached` too; `mask` is (B, S)."""
    layers = (attn.to_q, attn.to_k, attn.to_v)
    query, key, value = (layer(hidden).unflatten(-1, (attn.heads, -1)) for layer in layers)
    query = query if attn.norm_q is None else attn.norm_q(query)
    key = key if attn.norm_k is None else attn.norm_k(key)
    if turns is not None:
        query, key = rotate(query, turns), rotate(key, turns)
    if cached is not None:
        key, value = (torch.cat([each, more.to(each)], dim=1) for each, more in zip((key, value), cached, strict=True))
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), cached[0].shape[1])], dim=1)
    attended = dispatch_attention_fn(
        query,
        key,
        value,
        attn_mask=None if mask is None else mask[:, None, None, :],
        backend=processor._attention_backend,
        parallel_config=processor._parallel_config,
    )
    output = attended.flatten(2, 3).to(query.dtype)
    for layer in attn.to_out:
        output = layer(output)
    return output


def in_complex_numbers(tokens: Tensor, freqs_cis: Tensor) -> Tensor:
    """Return queries or keys (B, S, H, D) with the rotary embedding, which is computed in float32."""
    pairs = torch.view_as_complex(tokens.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * freqs_cis.unsqueeze(2)).flatten(3).type_as(tokens)
