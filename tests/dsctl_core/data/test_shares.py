"""Several datasets: an epoch has each row as often as repeats or weights say, in an order that is looked up."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsctl_core.data.problems import DataError
from dsctl_core.data.sampler import BatchPlan, Block
from dsctl_core.data.shares import MOST, Mixture, blocks_of, repeats_by_weight
from dsctl_core.errors import UsageError
from dsctl_core.options.datasets import DatasetTable

weights = st.one_of(st.floats(0.001, 1000), st.integers(1, 100), st.sampled_from([0.1, 0.7, 1e-6, 1e6]))
datasets = st.lists(st.tuples(st.integers(1, 10**6), weights), min_size=1, max_size=6)


def table(name: str, **values: object) -> DatasetTable:
    return DatasetTable.parse({"path": name, **values})


@given(datasets)
def test_shares_are_those_of_the_weights(found: list[tuple[int, float]]):
    counts, wanted = zip(*found, strict=True)
    repeats = repeats_by_weight(counts, wanted)
    sizes = [count * times for count, times in zip(counts, repeats, strict=True)]
    total = sum(Fraction(str(weight)) for weight in wanted)
    errors = [
        abs(Fraction(size, sum(sizes)) - Fraction(str(weight)) / total)
        for size, weight in zip(sizes, wanted, strict=True)
    ]
    assert all(times >= 1 for times in repeats)
    assert sum(sizes) < 2**53 + sum(counts)
    exact = not any(errors)
    assert exact or sum(sizes) > MOST // 2
    assert max(errors) * sum(sizes) <= sum(counts)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(0, 99),
    st.data(),
)
def test_an_epoch_has_every_repetition_once_in_batches_of_one_bucket(
    found: list[tuple[int, int]], size: int, seed: int, data: st.DataObject
):
    blocks = [Block(*each) for each in found]
    mixture, rows = Mixture(blocks), sum(block.rows for block in blocks)
    buckets = data.draw(st.lists(st.sampled_from("abc"), min_size=rows, max_size=rows))
    plan = BatchPlan(len(mixture), size, seed, buckets, blocks)
    batches = [plan.batch(1, number) for number in range(len(plan))]
    assert sorted(sum(batches, [])) == list(range(len(mixture)))
    assert all(len({buckets[mixture.row_at(position)] for position in batch}) == 1 for batch in batches)
    assert [plan.batch_length(1, number) for number in range(len(plan))] == list(map(len, batches))
    seen = Counter(mixture.row_at(position) for batch in batches for position in batch)
    of_row = [block.repeat for block in blocks for _ in range(block.rows)]
    assert [seen[row] for row in range(rows)] == of_row
    for position in range(len(mixture)):
        row, others = mixture.row_at(position), [mixture.row_at(each) for each in plan.substitutes(position)]
        assert mixture.row_at(mixture.position_of(row)) == row
        assert row not in others and len(set(others)) == len(others)
        assert {buckets[other] for other in others} <= {buckets[row]}


def test_one_block_is_the_order_of_one_dataset():
    buckets = list("aabbbabcbbba")
    one, plain = BatchPlan(36, 4, 1, buckets, [Block(12, 3)]), BatchPlan(36, 4, 1, buckets)
    numbers = range(len(plain))
    assert [one.batch(2, number) for number in numbers] == [plain.batch(2, number) for number in numbers]


def test_over_a_hundred_thousand_draws_shares_are_exact_to_one_percent_and_memory_does_not_grow():
    tables = [table("a", weight=0.5), table("b", weight=0.3), table("c", weight=0.2)]
    counts = [1009, 31, 397]
    blocks = blocks_of(counts, tables, repeat=10**6)
    mixture = Mixture(blocks)
    tracemalloc.start()
    try:
        plan = BatchPlan(len(mixture), 8, 7, [number % 3 for number in range(sum(counts))], blocks)
        plan.batch(0, len(plan) - 1)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()
    drawn: Counter[int] = Counter()
    for number in range(100_000 // 8):
        drawn.update(mixture.row_at(position) for position in plan.batch(3, number))
    ends = (1009, 1040, 1437)
    shares = [
        sum(drawn[row] for row in range(end - count, end)) / 100_000 for count, end in zip(counts, ends, strict=True)
    ]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.01)
    assert len(drawn) == 1437


def test_a_dataset_without_rows_and_an_epoch_beyond_counting_are_refused():
    with pytest.raises(DataError, match="b has no row to train on"):
        blocks_of([3, 0], [table("a"), table("b")])
    with pytest.raises(UsageError, match="an epoch would have"):
        blocks_of([10**6], [table("a", repeat=2**31 - 1)], repeat=2**31 - 1)
