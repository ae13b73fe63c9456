"""Batches of prompts of one length: the rest goes together, so an epoch keeps its samples and its number of batches."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dsctl_core.data.prompt_groups import group_lengths, grouped_share
from dsctl_core.data.sampler import BatchPlan, Block
from dsctl_core.data.shares import Mixture

ROWS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=40)


@given(ROWS, st.integers(1, 5), st.integers(0, 3))
def test_grouping_keeps_samples_and_batches_and_fills_those_of_one_length(rows, batch_size, epoch):
    buckets, lengths = [bucket for bucket, _, _ in rows], [length for _, length, _ in rows]
    blocks = [Block(1, repeat) for _, _, repeat in rows]
    total = sum(repeat for _, _, repeat in rows)
    groups = group_lengths(buckets, lengths, blocks, batch_size)
    plain = BatchPlan(total, batch_size, 7, buckets, blocks)
    plan = BatchPlan(total, batch_size, 7, groups, blocks)
    assert len(plan) == len(plain)
    mixture, seen, alike = Mixture(blocks), Counter(), 0
    for number in range(len(plan)):
        positions = plan.batch(epoch, number)
        seen.update(positions)
        own = [mixture.row_at(position) for position in positions]
        assert len({buckets[row] for row in own}) == 1
        if groups[own[0]][1] is not None:
            alike += len(own)
            assert len(own) == batch_size
            assert len({lengths[row] for row in own}) == 1
    assert seen == Counter(range(total)), "every position comes once"
    assert grouped_share(groups, blocks) == alike / total


def test_as_many_rows_of_a_length_as_fill_batches_are_grouped():
    lengths = [5, 5, 5, 7, 7, 9]
    groups = group_lengths("aaaaaa", lengths, [Block(6, 1)], 2)
    assert [length for _, length in groups] == [5, 5, None, 7, 7, None]
    assert all(length for _, length in group_lengths("aaaaaa", lengths, [Block(6, 4)], 2)), "each row fills two"
