"""Key/value caches: joined along their tokens, put into batches, refused where they do not fit each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsctl_core.errors import DsctlError
from dsctl_core.family import AttentionBlocks
from dsctl_core.media.kv_cache import check_kv_cache, join_kv_caches, stack_kv_caches, with_model_layout


def pair(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator), torch.randn(*shape, generator=generator)


def test_caches_are_joined_along_their_tokens_in_order() -> None:
    one, other = {"a": pair(1, 2, 3, 4)}, {"a": pair(1, 5, 3, 4, seed=1), "b": pair(1, 1, 3, 4, seed=2)}
    joined = join_kv_caches([one, other])
    assert set(joined) == {"a", "b"}
    for part in (0, 1):
        assert torch.equal(joined["a"][part], torch.cat([one["a"][part], other["a"][part]], dim=1))
        assert torch.equal(joined["b"][part], other["b"][part])


def test_a_cache_for_one_sample_joins_one_for_several() -> None:
    joined = join_kv_caches([{"a": pair(1, 2, 3, 4)}, {"a": pair(6, 2, 3, 4)}])
    assert joined["a"][0].shape == (6, 4, 3, 4)


def test_nothing_joined_is_nothing() -> None:
    assert join_kv_caches([]) == {}


def test_samples_are_stacked_into_a_batch() -> None:
    caches = [{"a": pair(1, 2, 3, 4, seed=seed)} for seed in range(3)]
    stacked = stack_kv_caches(caches)
    assert torch.equal(stacked["a"][1], torch.cat([each["a"][1] for each in caches]))


@pytest.mark.parametrize(
    ("caches", "said"),
    [
        ([{"a": pair(1, 2, 3, 4)}, {"a": pair(1, 3, 3, 4)}], r"block a is \(1, 2, 3, 4\) and \(1, 3, 3, 4\)"),
        ([{"a": pair(1, 2, 3, 4)}, {}], "block a, and one without"),
    ],
)
def test_samples_that_differ_are_no_batch(caches: list[Any], said: str) -> None:
    with pytest.raises(DsctlError, match=said):
        stack_kv_caches(caches)


def test_caches_of_other_models_do_not_join() -> None:
    with pytest.raises(DsctlError, match=r"block a do not fit each other: \(1, 2, 3, 4\) and \(1, 2, 3, 8\)"):
        join_kv_caches([{"a": pair(1, 2, 3, 4)}, {"a": pair(1, 2, 3, 8)}])


def test_a_checked_cache_serves_every_sample_and_has_no_empty_entries() -> None:
    checked = check_kv_cache({"a": pair(1, 2, 3, 4), "b": pair(1, 0, 3, 4)}, {"a": (3, 4), "b": (3, 4)}, 5)
    assert set(checked) == {"a"}
    assert checked["a"][0].shape == (5, 2, 3, 4)


class Attention(torch.nn.Module):
    heads, inner_dim = 3, 12


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention()


class Dit(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = torch.nn.ModuleList([Block(), Block()])


STACK = (AttentionBlocks(other_cache_names=("block",)),)


@pytest.mark.parametrize("name", ["double_1", "block_1"])
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 7])
def test_both_names_and_both_layouts_become_those_of_the_model(name: str, tokens: int) -> None:
    ours = pair(2, tokens, 3, 4)
    theirs = tuple(each.transpose(1, 2) for each in ours)
    for given in (ours, theirs):
        found = with_model_layout({name: given}, Dit(), STACK)
        assert list(found) == ["double_1"]
        as_given = tokens == 3 and given is theirs  # ends in (H, D) in either layout
        assert torch.equal(found["double_1"][0], given[0] if as_given else ours[0])
        assert found.keys() == with_model_layout(found, Dit(), STACK).keys()
        assert torch.equal(with_model_layout(found, Dit(), STACK)["double_1"][1], found["double_1"][1])


def test_two_layouts_join_along_their_tokens() -> None:
    ours, theirs = pair(1, 2, 3, 4), pair(1, 3, 5, 4, seed=1)
    joined = join_kv_caches(
        [with_model_layout({n: c}, Dit(), STACK) for n, c in (("double_0", ours), ("block_0", theirs))]
    )
    assert torch.equal(joined["double_0"][0], torch.cat([ours[0], theirs[0].transpose(1, 2)], dim=1))


def test_one_block_under_both_names_is_refused() -> None:
    with pytest.raises(DsctlError, match="has the block double_0 twice"):
        with_model_layout({"double_0": pair(1, 2, 3, 4), "block_0": pair(1, 2, 3, 4)}, Dit(), STACK)


def test_other_names_and_shapes_stay_for_the_check() -> None:
    cache = {"block_7": pair(1, 2, 3, 4), "double_0": pair(1, 2, 5, 4)}
    found = with_model_layout(cache, Dit(), STACK)
    assert {name: value[0].shape for name, value in found.items()} == {n: v[0].shape for n, v in cache.items()}
