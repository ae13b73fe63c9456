"""Compute the order of samples as a pure function of (seed, epoch, position), without a list of all samples.

A shuffled list of 10^9 positions takes minutes and gigabytes before the first step. A Feistel network computes one
position at a time instead: it is a permutation for any round function (Luby and Rackoff 1988), of a x b numbers for any
a and b (Black and Rogaway 2002), and of n < a x b numbers when it is applied until the result is below n ("cycle
walking").
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterator, Sequence
from itertools import accumulate
from math import isqrt

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


class BatchPlan:
    """The positions in each batch of each epoch, computed without the batches before it.

    `length` is the number of positions: repetitions of the rows of the dataset. `buckets` has the bucket of each row,
    and a batch has samples of one bucket only; None means one bucket. Every position comes once per epoch. The last
    batch of a bucket may be smaller than `batch_size`.
    """

    def __init__(self, length: int, batch_size: int, seed: int = 0, buckets: Sequence[Hashable] | None = None) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rows = length if buckets is None else len(buckets)
        members: dict[Hashable, list[int]] = {}
        for row, bucket in enumerate(buckets or ()):
            members.setdefault(bucket, []).append(row)
        self.members: list[Sequence[int]] = [*members.values()] if members else [range(self.rows)]
        self.group_of = {row: group for group, rows in enumerate(self.members[1:], 1) for row in rows}
        repeat = length // max(self.rows, 1)
        self.sizes = [len(rows) * repeat for rows in self.members]
        self.ends = list(accumulate(-(-size // batch_size) for size in self.sizes))
        self._orders: dict[tuple[int, int], Permutation] = {}

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return self.ends[-1]

    def batch(self, epoch: int, number: int) -> list[int]:
        """Return the positions in batch `number` (from 0) of an epoch."""
        group, first, last = self._locate(epoch, number)
        order, rows = self._order(epoch, group), self.members[group]
        shuffled = (order[index] for index in range(first, last))
        return [index // len(rows) * self.rows + rows[index % len(rows)] for index in shuffled]

    def batch_length(self, epoch: int, number: int) -> int:
        """Return the number of samples in batch `number` (from 0) of an epoch."""
        _, first, last = self._locate(epoch, number)
        return last - first

    def substitutes(self, position: int) -> Iterator[int]:
        """Yield the other positions of the same bucket and repetition, starting after `position`, with wrap-around."""
        repetition, row = divmod(position, self.rows)
        rows = self.members[self.group_of.get(row, 0)]
        following = bisect_right(rows, row)
        for step in range(len(rows) - 1):
            yield repetition * self.rows + rows[(following + step) % len(rows)]

    def _locate(self, epoch: int, number: int) -> tuple[int, int, int]:
        """Return (bucket, first, last): the batch has the shuffled samples first to last - 1 of the bucket."""
        if len(self.members) > 1:  # with one bucket, shuffling the samples is enough
            number = self._order(epoch, -1)[number]
        group = bisect_right(self.ends, number)
        first = (number - (self.ends[group - 1] if group else 0)) * self.batch_size
        return group, first, min(first + self.batch_size, self.sizes[group])

    def _order(self, epoch: int, group: int) -> Permutation:
        """Return the order of the samples of a bucket in an epoch; of all batches for the group -1."""
        if (epoch, group) not in self._orders:
            if len(self._orders) > 2 * len(self.members):  # most belong to earlier epochs
                self._orders.clear()
            length = len(self) if group < 0 else self.sizes[group]
            self._orders[epoch, group] = Permutation(length, derive_seed(self.seed, "order", epoch, group))
        return self._orders[epoch, group]
