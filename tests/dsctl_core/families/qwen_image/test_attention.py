"""The kv_cache of Qwen-Image: what it adds to attention, and that it changes nothing where it adds nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dsctl_core.errors import DsctlError
from dsctl_core.families.qwen_image import joint_attention
from dsctl_core.families.qwen_image.attention import CachedAttention
from dsctl_core.families.qwen_image.pipeline import QwenImagePipeline, model_fn_qwen_image

BLOCKS, HEADS, WIDTH = ("double_0", "double_1"), 2, 16
PROMPT = 5  # tokens


@pytest.fixture
def dit(pipe: QwenImagePipeline) -> Any:
    """The tiny transformer, fresh: no processor of ours is on it."""
    return copy.deepcopy(pipe.dit).requires_grad_(False)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def cache(tokens: int = 3, batch: int = 1, seed: int = 7, blocks: tuple[str, ...] = BLOCKS) -> dict[str, Any]:
    shape = (batch, tokens, HEADS, WIDTH)
    return {name: (random(*shape, seed=seed + i), random(*shape, seed=seed + 50 + i)) for i, name in enumerate(blocks)}


def inputs(batch: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {
        "latents": random(batch, 16, 4, 6, dtype=dtype),
        "timestep": torch.full((batch,), 400.0),
        "prompt_embeds": random(batch, PROMPT, 32, seed=1, dtype=dtype),
    }


def velocity(dit: Any, batch: int = 1, **more: Any) -> Tensor:
    return model_fn_qwen_image(dit, **inputs(batch), **more)


def test_without_a_cache_it_is_diffusers_own_processor_to_the_bit(dit: Any) -> None:
    before = velocity(dit)
    assert not any(isinstance(block.attn.processor, CachedAttention) for block in dit.transformer_blocks)
    steered = velocity(dit, kv_cache=cache())
    assert not torch.equal(steered, before)
    assert all(isinstance(block.attn.processor, CachedAttention) for block in dit.transformer_blocks)
    assert torch.equal(velocity(dit), before)  # nothing is left of the cache


@pytest.mark.parametrize("empty", [{}, cache(tokens=0), cache(tokens=0, blocks=("double_1",))])
def test_a_cache_without_tokens_changes_nothing(dit: Any, empty: dict[str, Any]) -> None:
    assert torch.equal(velocity(dit, kv_cache=empty), velocity(dit))
    velocity(dit, kv_cache=cache())
    assert torch.equal(velocity(dit, kv_cache=empty), velocity(dit))


def test_values_of_zero_are_not_no_cache(dit: Any) -> None:
    """A cached token takes its share of the softmax, exp(q k) / sum, from the others, whatever its value is.

    With a key of zero the share is 1 / (1 + sum of exp): the others' mixture is scaled down by what is left.
    """
    zero = {name: (torch.zeros_like(k), torch.zeros_like(v)) for name, (k, v) in cache().items()}
    assert not torch.allclose(velocity(dit, kv_cache=zero), velocity(dit), atol=1e-3)
    # The same in the open, on attention alone.
    query, key, value = (random(1, 2, 4, 8, seed=seed) for seed in (0, 1, 2))  # (B, H, T, D)
    alone = scaled_dot_product_attention(query, key, value)
    longer = [torch.cat([each, torch.zeros(1, 2, 1, 8)], dim=2) for each in (key, value)]
    mass = torch.softmax(query @ longer[0].transpose(-1, -2) / 8**0.5, dim=-1)[..., :-1].sum(-1, keepdim=True)
    torch.testing.assert_close(scaled_dot_product_attention(query, *longer), alone * mass)


def test_our_attention_computes_what_diffusers_does(dit: Any) -> None:
    attn = dit.transformer_blocks[0].attn
    hidden, prompt = random(2, 6, 32, seed=3), random(2, PROMPT, 32, seed=4)
    freqs = dit.pos_embed([[(1, 2, 3)]] * 2, max_txt_seq_len=PROMPT, device=torch.device("cpu"))
    processor = CachedAttention("double_0", attn.processor)
    for mask in (None, torch.tensor([[True] * PROMPT, [True, True, False, False, False]])):
        expected = attn.processor(attn, hidden, prompt, mask, image_rotary_emb=freqs)
        assert len(expected) == 2
        for made, other in zip(_without(attn, processor, hidden, prompt, mask, freqs), expected, strict=True):
            torch.testing.assert_close(made, other, atol=1e-6, rtol=1e-6)


def _without(attn: Any, processor: CachedAttention, hidden: Tensor, prompt: Tensor, mask: Any, freqs: Any) -> Any:
    """Run our branch with a cache of no tokens, which `model_fn` never hands to it."""
    empty = torch.zeros(len(hidden), 0, HEADS, WIDTH)
    return processor(attn, hidden, prompt, mask, image_rotary_emb=freqs, kv_cache={"double_0": (empty, empty)})


def test_the_cached_tokens_are_the_keys_and_values_as_they_are(dit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeating the block's own tokens, after their norm and rotation, changes no weighted mean."""
    attn = dit.transformer_blocks[0].attn
    hidden, prompt = random(1, 6, 32, seed=3), random(1, PROMPT, 32, seed=4)
    freqs = dit.pos_embed([[(1, 2, 3)]], max_txt_seq_len=PROMPT, device=torch.device("cpu"))
    seen: list[Any] = []

    def spy(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
        seen.append((key, value))
        return dispatch_attention_fn(query, key, value, **more)

    processor = CachedAttention("double_0", attn.processor)
    with monkeypatch.context() as patched:
        patched.setattr(joint_attention, "dispatch_attention_fn", spy)
        _without(attn, processor, hidden, prompt, None, freqs)
    twice = processor(attn, hidden, prompt, None, image_rotary_emb=freqs, kv_cache={"double_0": seen[0]})
    assert len(twice) == 2
    for made, expected in zip(twice, attn.processor(attn, hidden, prompt, image_rotary_emb=freqs), strict=True):
        torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


def test_padding_of_a_prompt_is_not_attended_to_with_a_cache(dit: Any) -> None:
    both = inputs(2)
    mask = torch.tensor([[True] * PROMPT, [True, True, False, False, False]])
    made = model_fn_qwen_image(dit, **both, prompt_embeds_mask=mask, kv_cache=cache())
    for number, length in enumerate((PROMPT, 2)):
        alone = {name: value[number : number + 1] for name, value in both.items()}
        alone["prompt_embeds"] = alone["prompt_embeds"][:, :length]
        expected = model_fn_qwen_image(dit, **alone, kv_cache=cache())
        torch.testing.assert_close(made[number : number + 1], expected, atol=1e-5, rtol=1e-4)


def test_a_cache_for_each_sample_of_a_batch(dit: Any) -> None:
    one, other = cache(seed=7), cache(seed=90)
    both = {name: tuple(torch.cat(pair) for pair in zip(one[name], other[name], strict=True)) for name in BLOCKS}
    made = velocity(dit, batch=2, kv_cache=both)
    for number, each in enumerate((one, other)):
        alone = {name: value[number : number + 1] for name, value in inputs(2).items()}
        expected = model_fn_qwen_image(dit, **alone, kv_cache=each)
        torch.testing.assert_close(made[number : number + 1], expected, atol=1e-5, rtol=1e-4)


def test_bfloat16_weights_take_a_cache_in_float32(dit: Any) -> None:
    half = copy.deepcopy(dit).bfloat16()
    made = model_fn_qwen_image(half, **inputs(), kv_cache=cache())
    torch.testing.assert_close(made, velocity(dit, kv_cache=cache()), atol=0.15, rtol=0.1)
    rounded = {name: (k.bfloat16(), v.bfloat16()) for name, (k, v) in cache().items()}
    assert torch.equal(model_fn_qwen_image(half, **inputs(), kv_cache=rounded), made)


def _loss(dit: Any, kv_cache: dict[str, Any], dtype: torch.dtype = torch.float32, **more: Any) -> Tensor:
    return (model_fn_qwen_image(dit, **inputs(1, dtype), kv_cache=kv_cache, **more) ** 2).sum()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("part", [0, 1])
def test_gradients_of_keys_and_values_match_finite_differences(dit: Any, block: str, part: int) -> None:
    """In float64, but for the rotary embedding, which diffusers computes in float32."""
    double = copy.deepcopy(dit).double()
    given = {name: tuple(each.double().requires_grad_() for each in pair) for name, pair in cache().items()}
    leaf = given[block][part]
    (gradient,) = torch.autograd.grad(_loss(double, given, torch.float64), leaf)
    step = 1e-2
    for seed in range(3):
        direction = random(*leaf.shape, seed=seed, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            moved = leaf.detach() + sign * step * direction
            pair = tuple(moved if i == part else each.detach() for i, each in enumerate(given[block]))
            ends.append(_loss(double, {**given, block: pair}, torch.float64).item())
        slope = (gradient * direction).sum().item()
        assert abs(slope) > 0.01
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-2, abs=2e-3)


@pytest.mark.parametrize("offload", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(dit: Any, offload: bool) -> None:
    def gradients(**more: Any) -> list[Tensor]:
        given = {name: tuple(each.clone().requires_grad_() for each in pair) for name, pair in cache().items()}
        leaves = [each for pair in given.values() for each in pair]
        return list(torch.autograd.grad(_loss(dit, given, **more), leaves))

    plain = gradients()
    recomputed = gradients(use_gradient_checkpointing=True, use_gradient_checkpointing_offload=offload)
    assert len(plain) == 2 * len(cache()) > 0
    for one, other in zip(recomputed, plain, strict=True):
        torch.testing.assert_close(one, other)


WRONG: dict[str, tuple[Any, str]] = {
    "block": ({"single_0": cache()["double_0"]}, "single_0"),
    "heads": ({"double_1": (torch.zeros(1, 3, 4, 16),) * 2}, r"double_1 .*\(1, 3, 4, 16\).*\(1, tokens, 2, 16\)"),
    "flat": ({"double_1": (torch.zeros(1, 3, 32),) * 2}, r"double_1 .*\(1, 3, 32\)"),
    "batch": ({"double_0": (torch.zeros(3, 3, 2, 16),) * 2}, r"double_0 .*\(3, 3, 2, 16\).*\(1, tokens, 2, 16\)"),
    "lengths": ({"double_0": (torch.zeros(1, 3, 2, 16), torch.zeros(1, 4, 2, 16))}, r"\(1, 3, .*\(1, 4, "),
    "no pair": ({"double_0": torch.zeros(1, 3, 2, 16)}, "double_0 is no pair"),
    "no dict": ([1], "a kv_cache is a list"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_cache_that_does_not_fit_is_refused_by_name(dit: Any, kind: str) -> None:
    given, said = WRONG[kind]
    with pytest.raises(DsctlError, match=said) as caught:
        velocity(dit, kv_cache=given)
    assert caught.value.hint
    assert not any(isinstance(block.attn.processor, CachedAttention) for block in dit.transformer_blocks)


def test_a_cache_may_be_for_some_blocks_only(dit: Any) -> None:
    last = velocity(dit, kv_cache=cache(blocks=("double_1",)))
    assert not torch.equal(last, velocity(dit))
    assert not torch.equal(last, velocity(dit, kv_cache=cache()))
