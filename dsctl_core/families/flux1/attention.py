"""Implement FLUX.1's attention with the tokens of a kv_cache in addition to those of the model.

Legend: B samples, T text tokens, S image tokens (including references), E cached tokens, H heads, D channels per head.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from torch import Tensor

from dsctl_core.families.flux1.family import FAMILY
from dsctl_core.families.flux2.attention import attend, mask_of, normed
from dsctl_core.media.kv_cache import CachedProcessor, KvCache, admit_kv_cache


def attention_kwargs_of(
    dit: Any, kv_cache: KvCache | None, text_mask: Tensor | None, batch: int, pictures: int
) -> dict[str, Any] | None:
    """Return the keyword arguments for the attention of the transformer: cached tokens and attention mask, or None.

    `text_mask` (B, T) marks the text tokens to attend to (None: all); all `pictures` image tokens (S) are attended to.
    """
    found = mask_of(text_mask, pictures)
    return {**found, **admit_kv_cache(dit, FAMILY.attention_blocks, kv_cache, batch, CachedAttention)} or None


class CachedAttention(CachedProcessor, FluxAttnProcessor):
    """The attention processor of one block; without cached tokens it acts like diffusers' processor."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Any = None,
        image_rotary_emb: Any = None,
        kv_cache: KvCache | None = None,
    ) -> Any:
        """Return the attention outputs of the image tokens (B, S, H*D) and of the text tokens (B, T, H*D).

        Without `encoder_hidden_states`, in blocks whose `hidden_states` (B, T + S, H*D) are both, it is one output.
        """
        cached = self.cached(kv_cache)
        if cached is None:
            plain: Any = super().__call__
            return plain(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        joined = normed(attn, hidden_states, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))
        if encoder_hidden_states is None:
            return attend(self, joined, cached, attention_mask, image_rotary_emb)
        layers, norms = ("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k")
        text = normed(attn, encoder_hidden_states, layers, norms)
        joined = [torch.cat(pair, dim=1) for pair in zip(text, joined, strict=True)]
        flat = attend(self, joined, cached, attention_mask, image_rotary_emb)
        tokens = encoder_hidden_states.shape[1]
        shown = flat[:, tokens:].contiguous()
        for layer in attn.to_out:
            shown = layer(shown)
        return shown, attn.to_add_out(flat[:, :tokens].contiguous())
