"""Key/value caches: joined along their tokens, put into batches, refused where they do not fit each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsctl_core.errors import DsctlError
from dsctl_core.media.kv_cache import check_kv_cache, join_kv_caches, stack_kv_caches


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
