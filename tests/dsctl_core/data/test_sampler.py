"""The order of samples: every one once an epoch, a function of the seed, from any position, at no cost."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter

import pytest

from dsctl_core.data.sampler import BatchPlan, Permutation


def epoch(plan: BatchPlan, number: int = 0) -> list[list[int]]:
    return [plan.batch(number, each) for each in range(len(plan))]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 16, 97, 1000, 4097])
def test_every_number_comes_once(length):
    for seed in range(5):
        order = Permutation(length, seed)
        assert sorted(order[position] for position in range(length)) == list(range(length))


def test_every_order_of_a_few_is_equally_likely():
    counts = Counter(tuple(order[i] for i in range(4)) for order in (Permutation(4, seed) for seed in range(12000)))
    assert len(counts) == 24
    # 500 each; the chi-square of 23 degrees of freedom is below 60 with probability 0.99996
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 60


def test_neighbours_do_not_stay_neighbours():
    order = [Permutation(10_000, 3)[position] for position in range(10_000)]
    near = sum(abs(a - b) <= 10 for a, b in zip(order, order[1:], strict=False))
    assert near < 60  # 20 are expected of a random order


@pytest.mark.parametrize("position", [-1, 5])
def test_a_position_outside_is_an_index_error(position):
    with pytest.raises(IndexError):
        Permutation(5, 0)[position]


def test_a_billion_repeats_start_at_once_and_anywhere():
    tracemalloc.start()
    try:
        began = time.perf_counter()
        plan = BatchPlan(12 * 10**9, 4, seed=0, buckets=[(64, 64)] * 8 + [(32, 96)] * 4)
        first, last = plan.batch(0, 0), plan.batch(3, len(plan) - 1)
        seconds = time.perf_counter() - began
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()
    assert seconds < 0.05  # 0.1 ms on a quiet machine
    assert all(0 <= position < 12 * 10**9 for position in first + last)
    assert max(first + last) > 10**8


def test_an_epoch_has_every_sample_once_in_batches_of_one_bucket():
    buckets = list("aabbbabcbbba")
    plan = BatchPlan(36, 4, seed=1, buckets=buckets)
    for number in (0, 1, 17):
        batches = epoch(plan, number)
        assert sorted(sum(batches, [])) == list(range(36))
        assert all(len({buckets[position % 12] for position in batch}) == 1 for batch in batches)
        # 12 of a, 21 of b, 3 of c: what is left of each bucket is a batch too
        assert Counter(map(len, batches)) == {4: 8, 3: 1, 1: 1}
        assert [plan.batch_length(number, each) for each in range(len(plan))] == list(map(len, batches))


def test_buckets_are_mixed_within_an_epoch():
    buckets = ["a"] * 50 + ["b"] * 50
    order = ["ab"[batch[0] >= 50] for batch in epoch(BatchPlan(100, 2, seed=0, buckets=buckets))]
    changes = sum(a != b for a, b in zip(order, order[1:], strict=False))
    assert changes > 10


def test_the_order_depends_on_the_seed_and_the_epoch_and_nothing_else():
    plan, same, other = BatchPlan(50, 4, seed=1), BatchPlan(50, 4, seed=1), BatchPlan(50, 4, seed=2)
    wanted = epoch(plan, 2)
    assert [same.batch(2, number) for number in reversed(range(13))] == wanted[::-1]
    assert epoch(other, 2) != wanted
    assert epoch(plan, 3) != wanted


def test_without_buckets_the_batch_size_only_groups():
    single = sum(epoch(BatchPlan(30, 1, seed=4)), [])
    assert sum(epoch(BatchPlan(30, 4, seed=4)), []) == single


def test_what_stands_in_for_a_sample_is_of_its_bucket_and_not_itself():
    plan = BatchPlan(12, 2, buckets=["a", "b", "a", "a", "c", "b"])
    assert list(plan.substitutes(2)) == [3, 0]
    assert list(plan.substitutes(9)) == [6, 8]
    assert list(plan.substitutes(4)) == []
    assert list(BatchPlan(3, 1).substitutes(1)) == [2, 0]
