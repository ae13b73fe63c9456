"""Samples between the two stages: picked from what the units wrote, split out of a batch, and put into one.

A sample is a dict from "shared.NAME" or "posi.NAME" (and "nega.NAME" where there is guidance) to a value as a batch of
one has it: tensors (1, ...), lists of one entry, and plain values that do not belong to one sample alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dsctl_core.errors import DsctlError
from dsctl_core.memory.pinned import on_device
from dsctl_core.units import Inputs, PipelineUnit, is_guided

Sample = dict[str, Any]
SIDES = ("shared", "posi", "nega")
LENGTHS = "_lengths"  # of what is padded, after its name


def pick(sides: Sequence[Inputs], names: Collection[str]) -> Sample:
    """Return what (shared, posi, nega) hold under `names`; the negative side only where guidance reads it."""
    count = 3 if is_guided(sides[0].get("cfg_scale", 1)) else 2
    found = zip(SIDES[:count], sides[:count], strict=True)
    return {f"{side}.{name}": values[name] for side, values in found for name in sorted(names) if name in values}


def unpick(sample: Mapping[str, Any]) -> tuple[Inputs, Inputs, Inputs]:
    """Undo `pick`: return (shared, posi, nega)."""
    sides: dict[str, Inputs] = {side: {} for side in SIDES}
    for key, value in sample.items():
        side, _, name = key.partition(".")
        sides[side][name] = value
    return sides["shared"], sides["posi"], sides["nega"]


def rounded(sample: Sample, dtype: torch.dtype) -> Sample:
    """Return `sample` with the floats that a cache in `dtype` would hold, in the dtypes that they have."""

    def through(value: Any) -> Any:
        if isinstance(value, list):
            return [through(entry) for entry in value]
        if isinstance(value, tuple):
            return tuple(through(entry) for entry in value)
        if isinstance(value, dict):
            return {key: through(entry) for key, entry in value.items()}
        if isinstance(value, Tensor) and value.is_floating_point() and dtype.itemsize < value.dtype.itemsize:
            return value.to(dtype).to(value.dtype)
        return value

    return {name: through(value) for name, value in sample.items()}


def padded_outputs(units: Iterable[PipelineUnit]) -> dict[str, str]:
    """Return which names are padded, and the name of the mask of each."""
    return {name: mask for unit in units for name, mask in unit.padded.items()}


def separate(batch: Sample, count: int, padded: Mapping[str, str]) -> list[Sample]:
    """Split a batch of `count` into its samples, each as it would be alone: without padding, and with no mask."""
    samples: list[Sample] = [{} for _ in range(count)]
    for key, value in batch.items():
        side, _, name = key.partition(".")
        mask = batch.get(f"{side}.{padded.get(name)}")
        for number, sample in enumerate(samples):
            if isinstance(value, Tensor) and len(value) == count:
                own = value[number : number + 1]
                sample[key] = own if mask is None else own[:, : int(mask[number].sum())]
            elif isinstance(value, list) and len(value) == count:
                sample[key] = [value[number]]
            else:
                sample[key] = value
        if name in padded.values() and value is not None:
            for sample in samples:
                sample[key] = None
    return samples


def collate(samples: Sequence[Sample], padded: Mapping[str, str]) -> Sample:
    """Put samples into one batch: tensors one below the other, what is padded up to the longest, with a mask.

    The lengths of NAME, if padded, are under NAME_lengths, so that nobody has to ask the device for them. One sample
    alone is handed back as it is.
    """
    if len(samples) == 1:
        return dict(samples[0])
    batch: Sample = {}
    for key in samples[0]:
        side, _, name = key.partition(".")
        values = [sample[key] for sample in samples]
        if name in padded.values() and all(value is None for value in values):
            batch.setdefault(key, None)
        elif len({value is None for value in values}) > 1:
            raise DsctlError(
                f"one batch has samples with and without {name}", hint="give every row what it is made of, or none"
            )
        elif isinstance(values[0], Tensor):
            lengths = [value.shape[1] for value in values] if name in padded else []
            if len(set(lengths)) > 1:
                batch[f"{side}.{name}{LENGTHS}"] = lengths
                values, batch[f"{side}.{padded[name]}"] = _pad(values, lengths)
            batch[key] = torch.cat(_of_one_size(name, values))
        elif isinstance(values[0], list):
            batch[key] = [entry for value in values for entry in value]
        else:
            batch[key] = _agreed(name, values)
    return batch


def _pad(values: list[Tensor], lengths: list[int]) -> tuple[list[Tensor], Tensor]:
    """Pad (1, T, ...) at the end of T, which is `lengths`, to the longest; return also what counts, (B, T) bool."""
    longest = max(lengths)
    filled = [torch.cat([v, v.new_zeros(1, longest - v.shape[1], *v.shape[2:])], dim=1) for v in values]
    return filled, on_device(torch.arange(longest) < torch.tensor(lengths)[:, None], values[0].device)


def _of_one_size(name: str, values: list[Tensor]) -> list[Tensor]:
    odd = next((value for value in values if value.shape != values[0].shape), None)
    if odd is None:
        return values
    raise _mixed(name, tuple(values[0].shape[1:]), tuple(odd.shape[1:]))


def _agreed(name: str, values: list[Any]) -> Any:
    odd = next((value for value in values if value != values[0]), values[0])
    if odd == values[0]:
        return values[0]
    raise _mixed(name, values[0], odd)


def _mixed(name: str, first: Any, other: Any) -> DsctlError:
    return DsctlError(
        f"one batch has samples whose {name} is {first} and {other}",
        hint="give all rows the same, or a batch size of 1; sizes are the same with --height and --width",
    )
