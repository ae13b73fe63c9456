"""Give samples with prompts of one length batches of their own, so that attention needs no mask in them.

Groups are buckets, so that the order stays that of `BatchPlan`. Those of a length that do not fill a batch go together
with those of other lengths: an epoch has as many batches as without groups.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from dsctl_core.data.sampler import Block


def group_lengths(
    buckets: Sequence[Hashable], lengths: Sequence[Hashable], blocks: Sequence[Block], batch_size: int
) -> list[tuple[Hashable, Hashable]]:
    """Return for each row (bucket, length), with the length None for rows that go with those of other lengths.

    The rows of one bucket and one length are as many as fill whole batches of `batch_size`, counted as often as an
    epoch has them; the rest, the last of them, go with others of their bucket. `blocks` are those of `BatchPlan`.
    """
    repeats = [block.repeat for block in blocks for _ in range(block.rows)]
    members: dict[tuple[Hashable, Hashable], list[int]] = {}
    for row, key in enumerate(zip(buckets, lengths, strict=True)):
        members.setdefault(key, []).append(row)
    groups: list[tuple[Hashable, Hashable]] = [(bucket, None) for bucket in buckets]
    for key, rows in members.items():
        samples, filled = 0, 0  # the most of the first rows that fill whole batches
        for count, row in enumerate(rows, 1):
            samples += repeats[row]
            filled = filled if samples % batch_size else count
        for row in rows[:filled]:
            groups[row] = key
    return groups


def grouped_share(groups: Sequence[tuple[Hashable, Hashable]], blocks: Sequence[Block]) -> float:
    """Return the share of the samples of an epoch whose batches have one length."""
    repeats = [block.repeat for block in blocks for _ in range(block.rows)]
    alike = sum(repeat for repeat, (_, length) in zip(repeats, groups, strict=True) if length is not None)
    return alike / sum(repeats)
