"""Verify a cache on disk and list its problems."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.errors import DsctlError
from dsctl_core.remote.address import shown
from dsctl_core.remote.errors import RemoteError

LEFT_OVER = "left over"


@dataclass(frozen=True)
class Problem:
    """One problem of a cache: its file, its row (from 0; None if it is not about a row), and a hint."""

    file: Path
    kind: str  # "manifest", "shard", "entry", "not finite", "left over"
    message: str
    hint: str | None = None
    row: int | None = None

    @property
    def harmless(self) -> bool:
        """Whether a run can train from the cache in spite of this problem."""
        return self.kind == LEFT_OVER


def find_problems(cache: Path) -> Iterator[Problem]:
    """Yield the problems of the cache in the folder, or at the address, `cache`.

    Every byte is read. Checked are the manifest, the index, the checksum of each shard, that each entry has its parts
    and the same names as the others, and that all values are finite. A shard that no entry uses is "left over", which
    is harmless.
    """
    try:
        dataset = CachedDataset(cache)
    except RemoteError:
        raise
    except DsctlError as unreadable:
        yield Problem(cache, "manifest", unreadable.problem, unreadable.hint)
        return
    bad = set()
    for path, error in dataset.verify_shards():
        if error is not None:
            bad.add(path.name)
            yield Problem(path, "shard", error.problem, error.hint)
    present: dict[str, dict[str, Any]] = {}
    for path in dataset.shards():
        try:
            present |= {} if path.name in bad else {path.name: dataset.structures_in(path)}
        except DsctlError as error:
            bad.add(path.name)
            yield Problem(path, "shard", error.problem, error.hint)
    names = {name for entry in dataset.entries[:1] for name in _names(dataset, entry.parts, present)}
    for entry in dataset.entries:
        if any(dataset.shard_names.get(key) in bad for key in entry.parts):
            continue
        lacking = [
            k
            for k in entry.parts
            if dataset.shard_names.get(k) not in present or k not in present[dataset.shard_names[k]]
        ]
        location = dataset.location(entry.row)
        again = "run the `dsctl cache` command again"
        if lacking:
            yield Problem(cache, "entry", f"{location} has no part {lacking[0][:12]}", again, entry.row)
            continue
        if _names(dataset, entry.parts, present) != names:
            yield Problem(cache, "entry", f"{location} does not have the same values as other rows", again, entry.row)
        try:
            sample = dataset.sample(entry)
        except DsctlError as error:
            yield Problem(cache, "entry", error.problem, error.hint, entry.row)
            continue
        for name, value in sample.items():
            if isinstance(value, Tensor) and value.shape[:1] != (1,):
                yield Problem(cache, "entry", f"{location}: its {name} is {tuple(value.shape)}", again, entry.row)
            if not is_finite(value):
                yield Problem(cache, "not finite", f"{location}: its {name} is not finite", "check the row", entry.row)
    for path in dataset.left_over():
        yield Problem(path, LEFT_OVER, f"{shown(path)} is not used by any entry", "`dsctl cache --prune` removes it")


def _names(dataset: CachedDataset, parts: tuple[str, ...], present: dict[str, dict[str, Any]]) -> set[str]:
    structures_of_parts = (present.get(dataset.shard_names.get(key, ""), {}).get(key, {}) for key in parts)
    return {name for structure in structures_of_parts for name in structure}


def is_finite(value: Any) -> bool:
    """Return whether every number in `value` is finite."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, list | tuple):
        return all(is_finite(entry) for entry in value)
    if isinstance(value, dict):
        return all(is_finite(entry) for entry in value.values())
    return True
