"""Implement Z-Image's attention with the tokens of a kv_cache in addition to those of image and prompt.

The blocks of the transformer pass no arguments on to their attention, so the cached tokens are held by the attention
processors for the time of one call, and again when gradient checkpointing recomputes a block.

Legend: B samples, S tokens of image and prompt, E cached tokens, H heads, D channels per head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.transformers.transformer_z_image import ZSingleStreamAttnProcessor
from torch import Tensor

from dsctl_core.families.z_image.family import FAMILY
from dsctl_core.families.z_image.joint_attention import attend, in_complex_numbers
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
        return attend(self, attn, hidden_states, attention_mask, freqs_cis, in_complex_numbers, self.tokens)
