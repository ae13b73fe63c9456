"""Compute the order of samples as a pure function of (seed, epoch, position), without a list of all samples.

A shuffled list of 10^9 positions takes minutes and gigabytes before the first step. A Feistel network computes one
position at a time instead: it is a permutation for any round function (Luby and Rackoff 1988), of a x b numbers for any
a and b (Black and Rogaway 2002), and of n < a x b numbers when it is applied until the result is below n ("cycle
walking").
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isqrt
from typing import NamedTuple

from dsctl_core.random import derive_seed

ROUNDS = 8
MASK = (1 << 64) - 1


class Permutation:
    """A random permutation of range(length). `permutation[position]` takes constant time and memory."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.left = max(isqrt(max(length - 1, 0)) + 1, 1)  # the smallest left * right >= length of about equal factors
        self.right = max(-(-length // self.left), 1)
        self.keys = tuple(derive_seed(seed, number) for number in range(ROUNDS))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> int:
        if not 0 <= position < self.length:
            raise IndexError(position)
        while True:
            position = self._step(position)
            if position < self.length:
                return position

    def _step(self, number: int) -> int:
        """Apply the Feistel network, a permutation of range(left * right), once."""
        sizes = [self.left, self.right]
        high, low = number % self.left, number // self.left
        for index, key in enumerate(self.keys):
            size = sizes[index % 2]
            high, low = low, (high + _mix_bits(low ^ key)) % size
        return high + low * self.left


def _mix_bits(number: int) -> int:
    """Return 64 bits that depend on every bit of `number` (the finalizer of SplitMix64, Steele et al. 2014)."""
    number = (number + 0x9E3779B97F4A7C15) & MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & MASK
    return number ^ (number >> 31)


class Block(NamedTuple):
    """Rows that an epoch has equally often, `repeat` times each: those of one of several datasets."""

    rows: int
    repeat: int


@dataclass(frozen=True)
class _Members:
    """The rows of one block in one bucket: `rows` count within the block.

    `start` is the place of the first in the shuffled samples of the bucket. The block has `length` rows for each
    repetition, from position `offset` on.
    """

    start: int
    offset: int
    length: int
    rows: Sequence[int]

    def position(self, index: int) -> int:
        """Return the position of the sample at place `index` of the bucket."""
        repetition, row = divmod(index - self.start, len(self.rows))
        return self.offset + repetition * self.length + self.rows[row]


class BatchPlan:
    """The positions in each batch of each epoch, computed without the batches before it.

    `length` is the number of positions: repetitions of the rows of the dataset. `buckets` has the bucket of each row,
    and a batch has samples of one bucket only; None means one bucket. Every position comes once per epoch. The last
    batch of a bucket may be smaller than `batch_size`.

    The rows of several datasets are `blocks`, which follow one another: all repetitions of the first, then of the next.
    None means one block.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        buckets: Sequence[Hashable] | None = None,
        blocks: Sequence[Block] | None = None,
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        rows = length if buckets is None else len(buckets)
        self.blocks = list(blocks) if blocks and buckets is not None else [Block(rows, length // max(rows, 1))]
        self.first_rows = list(accumulate((block.rows for block in self.blocks[:-1]), initial=0))
        lengths = (block.rows * block.repeat for block in self.blocks[:-1])
        self.offsets = list(accumulate(lengths, initial=0))
        members: dict[Hashable, list[int]] = {}
        for row, bucket in enumerate(buckets or ()):
            members.setdefault(bucket, []).append(row)
        found: list[Sequence[int]] = [*members.values()] if members else [range(rows)]
        self.group_of = {row: group for group, own in enumerate(found[1:], 1) for row in own}
        self.groups = [self._by_block(own) for own in found]
        self.sizes = [sum(len(each.rows) * self._repeat(each) for each in group) for group in self.groups]
        self.ends = list(accumulate(-(-size // batch_size) for size in self.sizes))
        self._orders: dict[tuple[int, int], Permutation] = {}

    def _by_block(self, rows: Sequence[int]) -> list[_Members]:
        """Divide the ascending `rows` of a bucket by their blocks."""
        if len(self.blocks) == 1:
            return [_Members(0, 0, self.blocks[0].rows, rows)]
        found, start = [], 0
        for number, block in enumerate(self.blocks):
            first = self.first_rows[number]
            own = [row - first for row in rows[bisect_left(rows, first) : bisect_left(rows, first + block.rows)]]
            if own:
                found.append(_Members(start, self.offsets[number], block.rows, own))
                start += len(own) * block.repeat
        return found

    def _repeat(self, members: _Members) -> int:
        return self.blocks[bisect_right(self.offsets, members.offset) - 1].repeat

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return self.ends[-1]

    def batch(self, epoch: int, number: int) -> list[int]:
        """Return the positions in batch `number` (from 0) of an epoch."""
        group, first, last = self._locate(epoch, number)
        order = self._order(epoch, group)
        return [self._position(group, order[index]) for index in range(first, last)]

    def batch_length(self, epoch: int, number: int) -> int:
        """Return the number of samples in batch `number` (from 0) of an epoch."""
        _, first, last = self._locate(epoch, number)
        return last - first

    def substitutes(self, position: int) -> Iterator[int]:
        """Yield the other positions of the same bucket and repetition, starting after `position`, with wrap-around."""
        block = bisect_right(self.offsets, position) - 1
        offset, length = self.offsets[block], self.blocks[block].rows
        repetition, row = divmod(position - offset, length)
        group = self.groups[self.group_of.get(self.first_rows[block] + row, 0)]
        rows = next(each.rows for each in group if each.offset == offset)
        following = bisect_right(rows, row)
        for step in range(len(rows) - 1):
            yield offset + repetition * length + rows[(following + step) % len(rows)]

    def _position(self, group: int, index: int) -> int:
        """Return the position of the sample at place `index` of a bucket."""
        members = self.groups[group]
        return members[bisect_right(members, index, key=lambda each: each.start) - 1].position(index)

    def _locate(self, epoch: int, number: int) -> tuple[int, int, int]:
        """Return (bucket, first, last): the batch has the shuffled samples first to last - 1 of the bucket."""
        if len(self.groups) > 1:  # with one bucket, shuffling the samples is enough
            number = self._order(epoch, -1)[number]
        group = bisect_right(self.ends, number)
        first = (number - (self.ends[group - 1] if group else 0)) * self.batch_size
        return group, first, min(first + self.batch_size, self.sizes[group])

    def _order(self, epoch: int, group: int) -> Permutation:
        """Return the order of the samples of a bucket in an epoch; of all batches for the group -1."""
        if (epoch, group) not in self._orders:
            if len(self._orders) > 2 * len(self.groups):  # most belong to earlier epochs
                self._orders.clear()
            length = len(self) if group < 0 else self.sizes[group]
            self._orders[epoch, group] = Permutation(length, derive_seed(self.seed, "order", epoch, group))
        return self._orders[epoch, group]
