"""Implement FLUX.2's attention with the tokens of a kv_cache in addition to those of the model.

Legend: B samples, T text tokens, S image tokens (including references), E cached tokens, H heads, D channels per head.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux2 import Flux2AttnProcessor, Flux2ParallelSelfAttnProcessor
from torch import Tensor

from dsctl_core.families.flux2.family import FAMILY
from dsctl_core.media.kv_cache import CachedProcessor, KvCache, admit_kv_cache


def attention_kwargs_of(
    dit: Any, kv_cache: KvCache | None, text_mask: Tensor | None, batch: int, pictures: int
) -> dict[str, Any] | None:
    """Return the keyword arguments for the attention of the transformer: cached tokens and attention mask, or None.

    `text_mask` (B, T) marks the text tokens to attend to (None: all); all `pictures` image tokens (S) are attended to.
    """
    found = mask_of(text_mask, pictures)
    return {**found, **admit_kv_cache(dit, FAMILY.attention_blocks, kv_cache, batch, _processor)} or None


def mask_of(text_mask: Tensor | None, pictures: int) -> dict[str, Any]:
    """Return the keyword argument with the attention mask (B, 1, 1, T + S), or none; see `attention_kwargs_of`."""
    if text_mask is None:
        return {}
    mask = torch.cat([text_mask.bool(), text_mask.new_ones(len(text_mask), pictures, dtype=torch.bool)], dim=1)
    return {"attention_mask": mask[:, None, None, :]}


def _processor(block: str, plain: Any) -> CachedProcessor:
    return CachedDouble(block, plain) if block.startswith("double") else CachedSingle(block, plain)


class CachedDouble(CachedProcessor, Flux2AttnProcessor):
    """The attention processor of one double-stream block; without cached tokens it acts like diffusers' processor."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Any = None,
        image_rotary_emb: Any = None,
        kv_cache: KvCache | None = None,
    ) -> Any:
        """Return the attention outputs of the image tokens (B, S, H*D) and of the text tokens (B, T, H*D)."""
        cached = self.cached(kv_cache)
        if cached is None:
            plain: Any = super().__call__
            return plain(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        pictures = normed(attn, hidden_states, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))
        text = normed(
            attn, encoder_hidden_states, ("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k")
        )
        joined = [torch.cat(pair, dim=1) for pair in zip(text, pictures, strict=True)]
        flat = attend(self, joined, cached, attention_mask, image_rotary_emb)
        tokens = encoder_hidden_states.shape[1]
        shown = flat[:, tokens:]
        for layer in attn.to_out:
            shown = layer(shown)
        return shown, attn.to_add_out(flat[:, :tokens])


class CachedSingle(CachedProcessor, Flux2ParallelSelfAttnProcessor):
    """The attention processor of one single-stream block, with projections fused with those of the feed-forward."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: Any = None,
        image_rotary_emb: Any = None,
        kv_cache: KvCache | None = None,
    ) -> Any:
        """Return the output of attention and feed-forward for text and image tokens, (B, T + S, H*D)."""
        cached = self.cached(kv_cache)
        if cached is None:
            plain: Any = super().__call__
            return plain(attn, hidden_states, attention_mask, image_rotary_emb)
        # The rows of the fused layer are those of query, key and value, then those of the feed-forward.
        own = 3 * attn.inner_dim
        fused = attn.to_qkv_mlp_proj(hidden_states)
        query, key, value = (each.unflatten(-1, (-1, attn.head_dim)) for each in fused[..., :own].chunk(3, dim=-1))
        flat = attend(self, [attn.norm_q(query), attn.norm_k(key), value], cached, attention_mask, image_rotary_emb)
        return attn.to_out(torch.cat([flat, attn.mlp_act_fn(fused[..., own:])], dim=-1))


def normed(attn: Any, hidden: Tensor, layers: tuple[str, str, str], norms: tuple[str, str]) -> list[Tensor]:
    """Return query, key and value of one stream, (B, T, H, D) each, with query and key normalized."""
    parts = [getattr(attn, name)(hidden).unflatten(-1, (-1, attn.head_dim)) for name in layers]
    return [*(getattr(attn, norm)(part) for norm, part in zip(norms, parts[:2], strict=True)), parts[2]]


def attend(
    processor: Any, own: list[Tensor], cached: tuple[Tensor, Tensor], mask: Tensor | None, rotary: Any
) -> Tensor:
    """Return the attention output (B, T + S, H*D) with the cached tokens appended to the keys and values.

    Rotary embeddings apply to the model's own tokens only.
    """
    query, key, value = own
    if mask is not None:
        mask = torch.cat([mask, mask.new_ones(*mask.shape[:-1], cached[0].shape[1])], dim=-1)
    if rotary is not None:
        rotated: list[Any] = [apply_rotary_emb(each, rotary, sequence_dim=1) for each in (query, key)]
        query, key = rotated
    attended = dispatch_attention_fn(
        query,
        torch.cat([key, cached[0].to(key)], dim=1),
        torch.cat([value, cached[1].to(value)], dim=1),
        attn_mask=mask,
        backend=processor._attention_backend,
        parallel_config=processor._parallel_config,
    )
    return attended.flatten(2, 3).to(query.dtype)
