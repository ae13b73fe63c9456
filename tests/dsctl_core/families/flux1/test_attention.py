"""The kv_cache of FLUX.1: what it adds to attention, and that it changes nothing where it adds nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dsctl_core.families.flux1.attention import CachedAttention
from dsctl_core.families.flux1.pipeline import Flux1Pipeline, model_fn_flux1
from dsctl_core.families.flux2 import attention
from tests.dsctl_core.families.flux1.conftest import Pair, fresh

BLOCKS, HEADS, WIDTH = ("double_0", "double_1", "single_0", "single_1"), 2, 16
TEXT, PICTURE = 5, 6  # tokens


@pytest.fixture
def pipe(dev: Pair) -> Flux1Pipeline:
    """A fresh pipeline: no processor of ours is on its transformer."""
    return fresh(dev.folder, only=["dit"])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cache(tokens: int = 3, blocks: tuple[str, ...] = BLOCKS) -> dict[str, Any]:
    shape = (1, tokens, HEADS, WIDTH)
    return {name: (random(*shape, seed=7 + i), random(*shape, seed=50 + i)) for i, name in enumerate(blocks)}


def velocity(dit: Any, batch: int = 1, **more: Any) -> Tensor:
    inputs = {"latents": random(batch, 16, 4, 6), "timestep": torch.full((batch,), 400.0), "embedded_guidance": 3.5}
    prompts = {"prompt_embeds": random(batch, TEXT, 24, seed=1), "pooled_embeds": random(batch, 16, seed=2)}
    return model_fn_flux1(dit, **inputs, **prompts, **more)


@torch.no_grad()
def test_without_cached_tokens_it_is_diffusers_own_processor_to_the_bit(pipe: Flux1Pipeline) -> None:
    before = velocity(pipe.dit)
    assert not torch.equal(velocity(pipe.dit, kv_cache=cache()), before)
    blocks = (*pipe.dit.transformer_blocks, *pipe.dit.single_transformer_blocks)
    assert [type(block.attn.processor) for block in blocks] == [CachedAttention] * 4
    for empty in (None, {}, cache(tokens=0)):
        assert torch.equal(velocity(pipe.dit, kv_cache=empty), before)


@torch.no_grad()
@pytest.mark.parametrize("block", BLOCKS)
def test_repeating_the_tokens_of_a_block_changes_nothing(
    pipe: Flux1Pipeline, block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cached tokens are keys and values after norm and rotation: repeating a block's own changes no weighted mean."""
    seen: list[tuple[Tensor, Tensor]] = []
    attend = attention.dispatch_attention_fn

    def spy(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
        seen.append((key[:, :-1], value[:, :-1]))
        return attend(query, key[:, :-1], value[:, :-1], **more)

    before = velocity(pipe.dit)
    with monkeypatch.context() as patched:
        patched.setattr(attention, "dispatch_attention_fn", spy)
        velocity(pipe.dit, kv_cache=cache(tokens=1, blocks=(block,)))
    assert [key.shape for key, _ in seen] == [(1, TEXT + PICTURE, HEADS, WIDTH)]
    torch.testing.assert_close(velocity(pipe.dit, kv_cache={block: seen[0]}), before, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kv_cache", [None, cache()], ids=["plain", "cached"])
def test_masked_tokens_of_the_prompt_are_not_attended_to(pipe: Flux1Pipeline, kv_cache: Any) -> None:
    mask = torch.ones(1, TEXT, dtype=torch.bool)
    whole = velocity(pipe.dit, kv_cache=kv_cache)
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(velocity(pipe.dit, kv_cache=kv_cache, prompt_embeds_mask=mask), whole, **close)
    mask[:, -1] = False
    assert (velocity(pipe.dit, kv_cache=kv_cache, prompt_embeds_mask=mask) - whole).abs().max() > 1e-4


def test_gradients_reach_the_cache_and_are_the_same_with_checkpointing(pipe: Flux1Pipeline) -> None:
    gradients = []
    for again in (False, True):
        given = {name: (key.requires_grad_(), value) for name, (key, value) in cache().items()}
        output = velocity(pipe.dit, kv_cache=given, use_gradient_checkpointing=again)
        output.square().mean().backward()
        gradients.append([key.grad for key, _ in given.values()])
    assert len(gradients[0]) == 4
    for one, other in zip(*gradients, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)
