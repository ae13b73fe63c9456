"""Divide an epoch among several datasets: how often it has each of their rows, and which row is at a position.

Every position of an epoch is a repetition of a row, so memory does not grow with their number.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from math import gcd, lcm

from dsctl_core.data.problems import DataError
from dsctl_core.data.sampler import Block
from dsctl_core.errors import UsageError
from dsctl_core.options.datasets import DatasetTable

MOST = 2**52  # samples of an epoch, so that an epoch of a billion repeats of it can still be counted in 64 bits


class Mixture:
    """The rows of several datasets, one after another, each repeated as often as its block says.

    Positions are those of a `BatchPlan` with these blocks: all repetitions of the first block, then of the next.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = tuple(blocks)
        self.first_rows = [0, *accumulate(block.rows for block in self.blocks)]
        self.offsets = [0, *accumulate(block.rows * block.repeat for block in self.blocks)]

    def __len__(self) -> int:
        """Return the number of positions of an epoch."""
        return self.offsets[-1]

    def row_at(self, position: int) -> int:
        """Return the number of the row, over all blocks, at a position of an epoch."""
        block = bisect_right(self.offsets, position) - 1
        return self.first_rows[block] + (position - self.offsets[block]) % self.blocks[block].rows

    def position_of(self, row: int) -> int:
        """Return the first position of the row with this number, over all blocks."""
        block = bisect_right(self.first_rows, row) - 1
        return self.offsets[block] + row - self.first_rows[block]


def blocks_of(counts: Sequence[int], tables: Sequence[DatasetTable], repeat: int = 1) -> list[Block]:
    """Return the block of each dataset: `counts` rows each, repeated as its table says, all of it `repeat` times.

    With weights, repeats are the smallest whole numbers by which the shares of samples are those of the weights.
    Raises `DataError` for a dataset without rows.
    """
    for count, table in zip(counts, tables, strict=True):
        if not count:
            raise DataError(
                f"[[dataset]] {table.label} has no row to train on",
                hint="add rows, or leave it out; a small one may be held out whole by --validation-split",
                kind="table",
            )
    weights = [table.weight for table in tables if table.weight is not None]
    own = repeats_by_weight(counts, weights) if weights else [table.repeat or 1 for table in tables]
    blocks = [Block(count, times * repeat) for count, times in zip(counts, own, strict=True)]
    total = sum(block.rows * block.repeat for block in blocks)
    if total >= 2**63:
        raise UsageError(f"an epoch would have {total} samples", hint="lower --dataset-repeat or the repeats")
    return blocks


def repeats_by_weight(counts: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Return how often an epoch has the `counts` rows of each dataset, so that its share is that of its weight.

    The shares are exact where that takes at most MOST samples an epoch, and else to within a row of that many.
    """
    exact = [Fraction(str(weight)) / count for weight, count in zip(weights, counts, strict=True)]
    scale = Fraction(lcm(*(each.denominator for each in exact)))
    whole = [int(each * scale) for each in exact]
    smallest = _divided(whole)
    if sum(count * times for count, times in zip(counts, smallest, strict=True)) <= MOST:
        return smallest
    total = sum(Fraction(str(weight)) for weight in weights)
    return [max(round(each * MOST / total), 1) for each in exact]


def _divided(numbers: Sequence[int]) -> list[int]:
    """Return positive numbers divided by what divides all of them."""
    common = gcd(*numbers)
    return [number // common for number in numbers]
