"""Running lanes of the first stage on samples: which of them may share a batch, and what a batch makes of each."""

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
from dsctl_core.stages.split import Lane, run

Item = TypeVar("Item")


def what_is_alike(pipe: BasePipeline, lane: Lane, sample: Sample) -> str:
    """Return a text that is the same for samples which go through the lane together as each would alone.

    They have the shapes of their inputs in common, and what the lane's units say of these.
    """
    sides = unpick(sample)
    return digest([[_shape(value) for value in sample.values()], [unit.alike(pipe, *sides) for unit in lane.units]])


def group(items: Sequence[Item], size: int, alike: Callable[[Item], Any]) -> list[list[Item]]:
    """Put items of which `alike` says the same into batches of at most `size`, in order."""
    if size == 1:
        return [[item] for item in items]
    batches: list[list[Item]] = []
    filling: dict[Any, list[Item]] = {}
    for item in items:
        key = alike(item)
        batch = filling.get(key)
        if batch is None or len(batch) == size:
            batch = filling[key] = []
            batches.append(batch)
        batch.append(item)
    return batches


def encode_batch(pipe: BasePipeline, lane: Lane, samples: Sequence[Sample]) -> list[Sample]:
    """Run a lane on its inputs, of samples that are alike, and return what it makes of each."""
    if not lane.units:
        return list(samples)
    padded = padded_outputs(lane.units)
    with torch.no_grad():
        sides = run(lane.units, pipe, unpick(collate(samples, padded)))
    return separate(pick(sides, lane.keeps), len(samples), padded)


def encode_all(pipe: BasePipeline, lane: Lane, samples: Sequence[Sample], size: int) -> list[Sample]:
    """Run a lane on its inputs, at most `size` together that are alike, and return what it makes of each, in order."""
    made: list[Sample] = [{}] * len(samples)
    numbers = range(len(samples))
    for batch in group(numbers, size, lambda number: what_is_alike(pipe, lane, samples[number])):
        for number, one in zip(batch, encode_batch(pipe, lane, [samples[n] for n in batch]), strict=True):
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
