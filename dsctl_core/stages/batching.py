"""Running groups of the first stage on samples: which of them may share a batch, and what a batch makes of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from dsctl_core.cache.codec import encode
from dsctl_core.files.digest import digest
from dsctl_core.pipeline import BasePipeline
from dsctl_core.stages.sample import Sample, collate, padded_outputs, pick, separate, unpick
from dsctl_core.stages.split import EncodeGroup, run

Item = TypeVar("Item")


def batch_key_of(pipe: BasePipeline, group: EncodeGroup, sample: Sample) -> str:
    """Return a text that is the same for samples which go through the group together as each would alone.

    They have the shapes of their inputs in common, and what the group's units say of these.
    """
    sides = unpick(sample)
    return digest(
        [[_shape(value) for value in sample.values()], [unit.batch_key(pipe, *sides) for unit in group.units]]
    )


def split_into_batches(items: Sequence[Item], size: int, key_of: Callable[[Item], Any]) -> list[list[Item]]:
    """Return batches of at most `size` items that have the same `key_of`, in order."""
    if size == 1:
        return [[item] for item in items]
    batches: list[list[Item]] = []
    filling: dict[Any, list[Item]] = {}
    for item in items:
        key = key_of(item)
        batch = filling.get(key)
        if batch is None or len(batch) == size:
            batch = filling[key] = []
            batches.append(batch)
        batch.append(item)
    return batches


def encode_batch(pipe: BasePipeline, group: EncodeGroup, samples: Sequence[Sample]) -> list[Sample]:
    """Run a group on its inputs, of samples that are alike, and return what it makes of each."""
    if not group.units:
        return list(samples)
    padded = padded_outputs(group.units)
    with torch.no_grad():
        sides = run(group.units, pipe, unpick(collate(samples, padded)))
    return separate(pick(sides, group.keeps), len(samples), padded)


def encode_all(pipe: BasePipeline, group: EncodeGroup, samples: Sequence[Sample], size: int) -> list[Sample]:
    """Run a group on its inputs, at most `size` together that are alike, and return what it makes of each, in order."""
    made: list[Sample] = [{}] * len(samples)
    numbers = range(len(samples))
    for batch in split_into_batches(numbers, size, lambda number: batch_key_of(pipe, group, samples[number])):
        for number, one in zip(batch, encode_batch(pipe, group, [samples[n] for n in batch]), strict=True):
            made[number] = one
    return made


def _shape(value: Any) -> Any:
    """Return what inputs of one batch have in common."""
    if isinstance(value, Image.Image):
        return list(value.size)
    if isinstance(value, Tensor):
        return list(value.shape)
    if isinstance(value, list):
        return [None if isinstance(entry, str) else _shape(entry) for entry in value]
    return encode(value, [])
