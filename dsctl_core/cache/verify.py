"""Everything that can be wrong with a cache on disk, as a list of problems."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.cache.shards import examine_all, shard_files, structures
from dsctl_core.errors import DsctlError

LEFT_OVER = "left over"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: which file, which row (from 0, where it is about one), and what to do."""

    file: Path
    kind: str  # "manifest", "shard", "entry", "not finite", "left over"
    message: str
    hint: str | None = None
    row: int | None = None

    @property
    def harmless(self) -> bool:
        """Whether the cache can be trained from all the same."""
        return self.kind == LEFT_OVER


def find_problems(cache: Path) -> Iterator[Problem]:
    """Yield what is wrong with the cache in the folder `cache`: nothing, when it can be trained from.

    Reads every byte: manifest, index, the checksum of every shard, and that each entry has its parts, of the shapes
    that its like have, with finite values. A shard that no entry uses is "left over", which is no harm.
    """
    try:
        dataset = CachedDataset(cache)
    except DsctlError as error:
        yield Problem(cache, "manifest", error.problem, error.hint)
        return
    bad = set()
    for path, fault in examine_all(dataset.shards()):
        if fault is not None:
            bad.add(path.name)
            yield Problem(path, "shard", fault.problem, fault.hint)
    present = {path.name: structures(path) for path in dataset.shards() if path.name not in bad}
    names = {name for entry in dataset.entries[:1] for name in _names(dataset, entry.parts, present)}
    for entry in dataset.entries:
        if any(dataset.places.get(key) in bad for key in entry.parts):
            continue
        lost = [k for k in entry.parts if dataset.places.get(k) not in present or k not in present[dataset.places[k]]]
        place = dataset.place(entry.row)
        again = "run the `dsctl cache` command again"
        if lost:
            yield Problem(cache, "entry", f"{place} has no part {lost[0][:12]}", again, entry.row)
            continue
        if _names(dataset, entry.parts, present) != names:
            yield Problem(cache, "entry", f"{place} does not have the values that other rows have", again, entry.row)
        for name, value in dataset.sample(entry).items():
            if isinstance(value, Tensor) and len(value) != 1:
                yield Problem(cache, "entry", f"{place}: its {name} is {tuple(value.shape)}", again, entry.row)
            if not is_finite(value):
                yield Problem(cache, "not finite", f"{place}: its {name} is not finite", "check that row", entry.row)
    for path in shard_files(cache):
        if path.name not in dataset.manifest.shards:
            yield Problem(path, LEFT_OVER, f"{path} is used by no entry", "`dsctl cache --prune` removes it")


def _names(dataset: CachedDataset, parts: tuple[str, ...], present: dict[str, dict[str, Any]]) -> set[str]:
    found = (present.get(dataset.places.get(key, ""), {}).get(key, {}) for key in parts)
    return {name for structure in found for name in structure}


def is_finite(value: Any) -> bool:
    """Return whether every number in `value` is finite."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, list | tuple):
        return all(is_finite(entry) for entry in value)
    if isinstance(value, dict):
        return all(is_finite(entry) for entry in value.values())
    return True
