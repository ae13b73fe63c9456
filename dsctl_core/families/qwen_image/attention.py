"""Implement joint attention with the tokens of a kv_cache in addition to those of prompt and image.

Legend: B samples, T prompt tokens, S image tokens, E cached tokens, H heads, D channels per head.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.transformers.transformer_qwenimage import QwenDoubleStreamAttnProcessor2_0
from torch import Tensor

from dsctl_core.families.qwen_image.family import FAMILY
from dsctl_core.families.qwen_image.joint_attention import attend, in_complex_numbers
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
        inputs = (hidden_states, encoder_hidden_states, encoder_hidden_states_mask, image_rotary_emb)
        return attend(self, attn, *inputs, in_complex_numbers, cached)
