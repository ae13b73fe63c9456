"""Implement joint attention with the tokens of a kv_cache in addition to those of prompt and image.

Legend: B samples, T prompt tokens, S image tokens, E cached tokens, H heads, D channels per head.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_qwenimage import (
    QwenDoubleStreamAttnProcessor2_0,
    apply_rotary_emb_qwen,
)
from torch import Tensor

from dsctl_core.families.qwen_image.family import FAMILY
from dsctl_core.media.kv_cache import CachedProcessor, KvCache, admit_kv_cache


def attention_kwargs_of(dit: Any, kv_cache: KvCache | None, batch: int) -> dict[str, Any] | None:
    """Return the keyword arguments for the attention of the transformer, or None if `kv_cache` has no tokens."""
    return admit_kv_cache(dit, FAMILY.attention_blocks, kv_cache, batch, CachedAttention) or None


class CachedAttention(CachedProcessor, QwenDoubleStreamAttnProcessor2_0):
    """The attention processor of one block; without cached tokens it acts like diffusers' processor."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        encoder_hidden_states_mask: Any = None,
        attention_mask: Any = None,
        image_rotary_emb: Any = None,
        kv_cache: KvCache | None = None,
    ) -> Any:
        """Return the attention outputs of the image tokens (B, S, H*D) and of the prompt tokens (B, T, H*D)."""
        cached = self.cached(kv_cache)
        if cached is None:
            plain: Any = super().__call__
            return plain(
                attn,
                hidden_states,
                encoder_hidden_states,
                encoder_hidden_states_mask=encoder_hidden_states_mask,
                attention_mask=attention_mask,
                image_rotary_emb=image_rotary_emb,
            )
        picture = (attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k)
        prompt = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj, attn.norm_added_q, attn.norm_added_k)
        freqs, prompt_freqs = image_rotary_emb if image_rotary_emb is not None else (None, None)
        own = _projected(hidden_states, *picture, freqs, attn.heads)
        prompted = _projected(encoder_hidden_states, *prompt, prompt_freqs, attn.heads)
        query, key, value = (torch.cat(pair, dim=1) for pair in zip(prompted, own, strict=True))
        attended = dispatch_attention_fn(
            query,
            torch.cat([key, cached[0].to(key)], dim=1),
            torch.cat([value, cached[1].to(value)], dim=1),
            attn_mask=_what_counts(encoder_hidden_states_mask, hidden_states.shape[1] + cached[0].shape[1]),
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        flat = attended.flatten(2, 3).to(query.dtype)  # (B, T + S, H, D) -> (B, T + S, H*D)
        tokens = encoder_hidden_states.shape[1]
        shown = flat[:, tokens:].contiguous()
        for layer in attn.to_out:
            shown = layer(shown)
        return shown, attn.to_add_out(flat[:, :tokens].contiguous())


def _projected(
    hidden: Tensor, to_q: Any, to_k: Any, to_v: Any, norm_q: Any, norm_k: Any, freqs: Tensor | None, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and value of one stream, (B, T, H, D) each; norm and rotary embedding are applied."""
    query, key, value = (layer(hidden).unflatten(-1, (heads, -1)) for layer in (to_q, to_k, to_v))
    query = query if norm_q is None else norm_q(query)
    key = key if norm_k is None else norm_k(key)
    if freqs is not None:
        query, key = (apply_rotary_emb_qwen(each, freqs, use_real=False) for each in (query, key))
    return query, key, value


def _what_counts(prompt_mask: Tensor | None, others: int) -> Tensor | None:
    """Return the attention mask (B, 1, 1, T + S + E), True for all tokens except the padding of the prompt."""
    if prompt_mask is None:
        return None
    mask = torch.cat([prompt_mask.bool(), prompt_mask.new_ones(len(prompt_mask), others, dtype=torch.bool)], dim=1)
    return mask[:, None, None, :]
