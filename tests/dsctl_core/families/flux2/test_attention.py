"""The kv_cache of FLUX.2: what it adds to attention, and that it changes nothing where it adds nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from dsctl_core.errors import DsctlError
from dsctl_core.families.flux2 import attention
from dsctl_core.families.flux2.attention import CachedDouble, CachedSingle
from dsctl_core.families.flux2.pipeline import model_fn_flux2
from tests.dsctl_core.families.flux2.conftest import Pair

BLOCKS, HEADS, WIDTH = ("double_0", "single_0", "single_1"), 2, 16
TEXT, PICTURE = 5, 6  # tokens


@pytest.fixture
def dit(pair: Pair) -> Any:
    """The tiny transformer, fresh: no processor of ours is on it."""
    return fresh(pair)


def fresh(pair: Pair) -> Any:
    made = type(pair.ours.dit).from_config(pair.ours.dit.config)
    made.load_state_dict(pair.ours.dit.state_dict())
    return made.eval().requires_grad_(False)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def cache(tokens: int = 3, batch: int = 1, seed: int = 7, blocks: tuple[str, ...] = BLOCKS) -> dict[str, Any]:
    shape = (batch, tokens, HEADS, WIDTH)
    return {name: (random(*shape, seed=seed + i), random(*shape, seed=seed + 50 + i)) for i, name in enumerate(blocks)}


def inputs(batch: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {
        "latents": random(batch, 128, 2, 3, dtype=dtype),
        "timestep": torch.full((batch,), 400.0),
        "prompt_embeds": random(batch, TEXT, 48, seed=1, dtype=dtype),
        "embedded_guidance": 4.0,
    }


def velocity(dit: Any, batch: int = 1, **more: Any) -> Tensor:
    return model_fn_flux2(dit, **inputs(batch), **more)


def processors(dit: Any) -> list[Any]:
    return [block.attn.processor for block in (*dit.transformer_blocks, *dit.single_transformer_blocks)]


def ours(dit: Any) -> list[bool]:
    return [isinstance(processor, CachedDouble | CachedSingle) for processor in processors(dit)]


def test_without_a_cache_it_is_diffusers_own_processor_to_the_bit(dit: Any) -> None:
    before = velocity(dit)
    assert ours(dit) == [False] * 3
    steered = velocity(dit, kv_cache=cache())
    assert not torch.equal(steered, before)
    assert ours(dit) == [True] * 3
    assert torch.equal(velocity(dit), before)  # nothing is left of the cache


@pytest.mark.parametrize("empty", [{}, cache(tokens=0), cache(tokens=0, blocks=("single_1",))])
def test_a_cache_without_tokens_changes_nothing(dit: Any, empty: dict[str, Any]) -> None:
    assert torch.equal(velocity(dit, kv_cache=empty), velocity(dit))
    velocity(dit, kv_cache=cache())
    assert torch.equal(velocity(dit, kv_cache=empty), velocity(dit))


@pytest.mark.parametrize("block", BLOCKS)
def test_values_of_zero_are_not_no_cache(dit: Any, block: str) -> None:
    """A cached token takes its share of the softmax from the others, whatever its value is."""
    zero = {block: (torch.zeros(1, 3, HEADS, WIDTH),) * 2}
    assert not torch.allclose(velocity(dit, kv_cache=zero), velocity(dit), atol=1e-4)


def rotary(dit: Any, tokens: int) -> Any:
    return dit.pos_embed(torch.arange(4.0 * tokens).view(tokens, 4))


def run(dit: Any, block: str, kv_cache: Any, processor: Any = None) -> tuple[Tensor, ...]:
    """Run the attention of one block alone, with our processor or with `processor`."""
    kind, _, number = block.partition("_")
    blocks = dit.transformer_blocks if kind == "double" else dit.single_transformer_blocks
    attn = blocks[int(number)].attn
    made = (CachedDouble if kind == "double" else CachedSingle)(block, attn.processor)
    more = {"image_rotary_emb": rotary(dit, TEXT + PICTURE)}
    if processor is None:
        processor, more["kv_cache"] = made, kv_cache
    if kind == "double":
        return processor(attn, random(2, PICTURE, 32, seed=3), random(2, TEXT, 32, seed=4), **more)
    return (processor(attn, random(2, TEXT + PICTURE, 32, seed=3), **more),)


def official(dit: Any, block: str) -> tuple[Tensor, ...]:
    number = int(block[-1])
    blocks = dit.transformer_blocks if block.startswith("double") else dit.single_transformer_blocks
    return run(dit, block, None, blocks[number].attn.processor)


@pytest.mark.parametrize("block", BLOCKS)
def test_our_attention_computes_what_diffusers_does(dit: Any, block: str) -> None:
    empty = torch.zeros(2, 0, HEADS, WIDTH)  # a cache without tokens, which `model_fn` never hands on
    whole = official(dit, block)
    assert len(whole) > 0
    for made, expected in zip(run(dit, block, {block: (empty, empty)}), whole, strict=True):
        torch.testing.assert_close(made, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_cached_tokens_are_the_keys_and_values_as_they_are(
    dit: Any, block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeating the block's own tokens, after their norm and rotation, changes no weighted mean."""
    seen: list[Any] = []

    def spy(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
        seen.append((key, value))
        return dispatch_attention_fn(query, key, value, **more)

    empty = torch.zeros(2, 0, HEADS, WIDTH)
    with monkeypatch.context() as patched:
        patched.setattr(attention, "dispatch_attention_fn", spy)
        run(dit, block, {block: (empty, empty)})
    whole = official(dit, block)
    assert len(whole) > 0
    for made, expected in zip(run(dit, block, {block: seen[0]}), whole, strict=True):
        torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


def test_a_cache_for_each_sample_of_a_batch(dit: Any) -> None:
    one, other = cache(seed=7), cache(seed=90)
    both = {name: tuple(torch.cat(pair) for pair in zip(one[name], other[name], strict=True)) for name in BLOCKS}
    made = velocity(dit, batch=2, kv_cache=both)
    given = {name: value for name, value in inputs(2).items() if isinstance(value, Tensor)}
    for number, each in enumerate((one, other)):
        alone = {name: value[number : number + 1] for name, value in given.items()}
        expected = model_fn_flux2(dit, **alone, embedded_guidance=4.0, kv_cache=each)
        torch.testing.assert_close(made[number : number + 1], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kv_cache", [None, cache()], ids=["alone", "cached"])
def test_text_that_is_masked_is_not_attended_to(dit: Any, kv_cache: Any) -> None:
    both = {name: value for name, value in inputs(2).items() if isinstance(value, Tensor)}
    mask = torch.tensor([[True] * TEXT, [True, True, False, False, False]])
    made = model_fn_flux2(dit, **both, prompt_embeds_mask=mask, embedded_guidance=4.0, kv_cache=kv_cache)
    for number, length in enumerate((TEXT, 2)):
        alone = {name: value[number : number + 1] for name, value in both.items()}
        alone["prompt_embeds"] = alone["prompt_embeds"][:, :length]
        expected = model_fn_flux2(dit, **alone, embedded_guidance=4.0, kv_cache=kv_cache)
        torch.testing.assert_close(made[number : number + 1], expected, atol=1e-5, rtol=1e-4)


def test_a_cache_stands_beside_reference_pictures(dit: Any) -> None:
    references = {"edit_latents": random(1, 4, 128, seed=8), "edit_sizes": ((2, 2),)}
    made = velocity(dit, kv_cache=cache(), **references)
    assert made.shape == velocity(dit).shape
    assert (made - velocity(dit, **references)).abs().max() > 1e-3
    assert (made - velocity(dit, kv_cache=cache())).abs().max() > 1e-3


def test_bfloat16_weights_take_a_cache_in_float32(dit: Any) -> None:
    half = copy.deepcopy(dit).bfloat16()
    made = model_fn_flux2(half, **inputs(), kv_cache=cache())
    torch.testing.assert_close(made, velocity(dit, kv_cache=cache()), atol=0.15, rtol=0.1)
    rounded = {name: (k.bfloat16(), v.bfloat16()) for name, (k, v) in cache().items()}
    assert torch.equal(model_fn_flux2(half, **inputs(), kv_cache=rounded), made)


def _loss(dit: Any, kv_cache: dict[str, Any], dtype: torch.dtype = torch.float32, **more: Any) -> Tensor:
    return (model_fn_flux2(dit, **inputs(1, dtype), kv_cache=kv_cache, **more) ** 2).sum()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("part", [0, 1])
def test_gradients_of_keys_and_values_match_finite_differences(klein: Pair, block: str, part: int) -> None:
    """In float64, but for the rotary embedding, which diffusers computes in float32; no base weight gets a gradient."""
    double = fresh(klein).double()
    before = {name: tensor.clone() for name, tensor in double.state_dict().items()}
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
    assert all(torch.equal(tensor, before[name]) for name, tensor in double.state_dict().items())
    assert all(parameter.grad is None for parameter in double.parameters())


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
        assert one.abs().max() > 0


WRONG: dict[str, tuple[Any, str]] = {
    "block": ({"single_2": cache()["double_0"]}, "single_2"),
    "heads": ({"single_1": (torch.zeros(1, 3, 4, 16),) * 2}, r"single_1 .*\(1, 3, 4, 16\).*\(1, tokens, 2, 16\)"),
    "batch": ({"double_0": (torch.zeros(3, 3, 2, 16),) * 2}, r"double_0 .*\(3, 3, 2, 16\).*\(1, tokens, 2, 16\)"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_cache_that_does_not_fit_is_refused_by_name(dit: Any, kind: str) -> None:
    given, said = WRONG[kind]
    with pytest.raises(DsctlError, match=said):
        velocity(dit, kv_cache=given)
    assert ours(dit) == [False] * 3


def test_a_cache_may_be_for_some_blocks_only(dit: Any) -> None:
    last = velocity(dit, kv_cache=cache(blocks=("single_1",)))
    assert not torch.equal(last, velocity(dit))
    assert not torch.equal(last, velocity(dit, kv_cache=cache()))
