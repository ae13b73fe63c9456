"""The order of samples: a pure function of (seed, epoch, position), without a list of all of them.

A shuffled list of 10^9 positions takes minutes and gigabytes before the first step. Here a position is looked up: a
Feistel network is a permutation whatever its round function (Luby and Rackoff 1988), of a x b numbers for any a and b
(Black and Rogaway 2002), and of n < a x b of them by walking on until the result is below n.
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
    """A shuffle of range(length): `permutation[position]`, in constant time and memory."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.left = max(isqrt(max(length - 1, 0)) + 1, 1)  # left * right >= length, by as little as can be
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
        """Permute range(left * right)."""
        sides = [self.left, self.right]
        high, low = number % self.left, number // self.left
        for place, key in enumerate(self.keys):
            side = sides[place % 2]
            high, low = low, (high + _mixed(low ^ key)) % side
        return high + low * self.left


def _mixed(number: int) -> int:
    """Return 64 bits that depend on every bit of `number` (the finalizer of SplitMix64, Steele et al. 2014)."""
    number = (number + 0x9E3779B97F4A7C15) & MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & MASK
    return number ^ (number >> 31)


class BatchPlan:
    """Which samples make up each batch of each epoch, found without making those before it.

    `length` positions are repetitions of as many rows as `buckets` has, and a batch holds samples of one bucket only
    (all are alike when it is None). In an epoch every position comes once; the last batch of a bucket may be smaller.
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
        """Return how many batches an epoch has."""
        return self.ends[-1]

    def batch(self, epoch: int, number: int) -> list[int]:
        """Return the positions in batch `number` (from 0) of an epoch."""
        group, first, last = self._place(epoch, number)
        order, rows = self._order(epoch, group), self.members[group]
        drawn = (order[place] for place in range(first, last))
        return [place // len(rows) * self.rows + rows[place % len(rows)] for place in drawn]

    def batch_length(self, epoch: int, number: int) -> int:
        """Return how many samples batch `number` of an epoch has."""
        _, first, last = self._place(epoch, number)
        return last - first

    def substitutes(self, position: int) -> Iterator[int]:
        """Yield the other positions of the same bucket and repetition, from the next row on."""
        repetition, row = divmod(position, self.rows)
        rows = self.members[self.group_of.get(row, 0)]
        at = bisect_right(rows, row)
        for step in range(len(rows) - 1):
            yield repetition * self.rows + rows[(at + step) % len(rows)]

    def _place(self, epoch: int, number: int) -> tuple[int, int, int]:
        """Return the bucket of a batch, and which of the bucket's shuffled samples are in it."""
        if len(self.members) > 1:  # else the samples are shuffled already
            number = self._order(epoch, -1)[number]
        group = bisect_right(self.ends, number)
        within = number - (self.ends[group - 1] if group else 0)
        first = within * self.batch_size
        return group, first, min(first + self.batch_size, self.sizes[group])

    def _order(self, epoch: int, group: int) -> Permutation:
        if (epoch, group) not in self._orders:
            if len(self._orders) > 2 * len(self.members):  # of epochs that are over
                self._orders.clear()
            length = len(self) if group < 0 else self.sizes[group]
            self._orders[epoch, group] = Permutation(length, derive_seed(self.seed, "order", epoch, group))
        return self._orders[epoch, group]
