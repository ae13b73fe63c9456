"""Implement Z-Image's attention with the tokens of a kv_cache in addition to those of image and prompt.

The blocks of the transformer pass no arguments on to their attention, so the cached tokens are held by the attention
processors for the time of one call, and again when gradient checkpointing recomputes a block.

Legend: B samples, S tokens of image and prompt, E cached tokens, H heads, D channels per head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_z_image import ZSingleStreamAttnProcessor
from torch import Tensor

from dsctl_core.families.z_image.family import FAMILY
from dsctl_core.media.kv_cache import CachedProcessor, KvCache, admit_kv_cache, attention_modules
from dsctl_core.memory.recompute import recomputed_inside


@contextmanager
def attending_to(dit: Any, kv_cache: KvCache | None, batch: int) -> Iterator[None]:
    """Let the blocks of `dit` attend to the tokens of `kv_cache` too, inside the block and when it is recomputed."""
    admitted = admit_kv_cache(dit, FAMILY.attention_blocks, kv_cache, batch, CachedAttention)
    if not admitted:
        yield
        return
    processors = [attn.processor for attn in attention_modules(dit, FAMILY.attention_blocks).values()]

    @contextmanager
    def held() -> Iterator[None]:
        for processor in processors:
            processor.tokens = processor.cached(admitted["kv_cache"])
        try:
            yield
        finally:
            for processor in processors:
                processor.tokens = None

    with recomputed_inside(held), held():
        yield


class CachedAttention(CachedProcessor, ZSingleStreamAttnProcessor):
    """The attention processor of one block; without cached tokens it acts like diffusers' processor."""

    tokens: tuple[Tensor, Tensor] | None = None  # keys and values (B, E, H, D) during a call

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Tensor | None = None,
    ) -> Tensor:
        """Return the attention output (B, S, H*D). `attention_mask` is (B, S) or None, `freqs_cis` (B, S, D/2)."""
        if self.tokens is None:
            plain: Any = super().__call__
            return plain(attn, hidden_states, encoder_hidden_states, attention_mask, freqs_cis)
        layers = (attn.to_q, attn.to_k, attn.to_v)
        query, key, value = (layer(hidden_states).unflatten(-1, (attn.heads, -1)) for layer in layers)
        query, key = (
            _rotated(each if norm is None else norm(each), freqs_cis)
            for each, norm in ((query, attn.norm_q), (key, attn.norm_k))
        )
        if attention_mask is not None:
            shown = attention_mask.new_ones(len(attention_mask), self.tokens[0].shape[1])
            attention_mask = torch.cat([attention_mask, shown], dim=1)[:, None, None, :]
        attended = dispatch_attention_fn(
            query,
            torch.cat([key, self.tokens[0].to(key)], dim=1),
            torch.cat([value, self.tokens[1].to(value)], dim=1),
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        output = attended.flatten(2, 3).to(query.dtype)
        for layer in attn.to_out:
            output = layer(output)
        return output


def _rotated(tokens: Tensor, freqs_cis: Tensor | None) -> Tensor:
    """Return queries or keys (B, S, H, D) with the rotary embedding, which is computed in float32."""
    if freqs_cis is None:
        return tokens
    pairs = torch.view_as_complex(tokens.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * freqs_cis.unsqueeze(2)).flatten(3).type_as(tokens)
