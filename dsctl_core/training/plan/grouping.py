"""Group the samples of a run into batches by the lengths of their prompts, where that has an effect."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.data.prompt_groups import group_lengths, grouped_share
from dsctl_core.errors import UsageError
from dsctl_core.family import Family
from dsctl_core.progress import Progress
from dsctl_core.training.model.task_module import TaskModule

FLAG = "--group-by-prompt-length"


def refuse_groups(family: Family, *, cached: bool) -> None:
    """Raise a UsageError for a model that masks no prompts, and for prompts that are encoded at each step."""
    if family.masked_in is None:
        raise UsageError(f"{FLAG} has no effect on {family.title}, whose prompts are never masked", hint="leave it out")
    if not cached:
        raise UsageError(
            f"{FLAG} is given, but the prompts of this run are encoded at each step, and have no length before",
            hint="train from a cache, or leave it out",
        )


def grouped_buckets(
    source: CachedDataset, module: TaskModule, buckets: Sequence[Hashable], batch_size: int, progress: Progress
) -> list[Hashable]:
    """Return for each row of `source` a key of its bucket and of the length of its prompt; see `group_lengths`.

    Raises a UsageError where that makes no other batches.
    """
    unit = module.pipe.family.masked_in
    assert unit is not None
    lengths = [tuple(-(-each // unit) for each in own) for own in source.lengths(module.padded)]
    blocks = source.mixture.blocks
    groups = group_lengths(buckets, lengths, blocks, batch_size)
    share = grouped_share(groups, blocks)
    if len(set(lengths)) == 1 or not share:
        found = "all prompts have one length" if share else f"no {batch_size} prompts of one size have one length"
        raise UsageError(f"{FLAG} has no effect: {found}", hint="leave it out")
    progress.note(f"Prompts: {share:.0%} of the samples are in batches of one length, which need no attention mask")
    return list(groups)
