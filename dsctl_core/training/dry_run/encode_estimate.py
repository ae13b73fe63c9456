"""Estimate what encoding a dataset into a cache needs, on fake tensors, without loading any weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image

from dsctl_core.stages.plan_rows import has_pictures
from dsctl_core.training.dry_run.fake_tensors import Simulation
from dsctl_core.training.dry_run.process_memory import available_memory, warm_up
from dsctl_core.training.dry_run.simulated import SimulatedModel, encode_row, entry_bytes, largest
from dsctl_core.training.dry_run.traffic import Traffic, traffic_of_encoding
from dsctl_core.training.dry_run.verdict import verdict

if TYPE_CHECKING:
    from pathlib import Path

    from dsctl_core.training.plan.encode import EncodePlan


@dataclass(frozen=True)
class EncodeDryRun:
    """The needs of encoding, in bytes.

    `process` is the memory of the program, which counts on a CPU only; `weights` those of the components that are in
    memory at once; `activations` what the largest row takes, times the batch size. `cache` is at most what the folder
    has in the end: rows with equal prompts share an entry.
    """

    entries: int
    process: int
    weights: int
    activations: int
    peak: int
    cache: int
    device: str
    available_memory: int
    traffic: Traffic
    not_on_disk: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the peak is at most the memory of the device."""
        return self.peak <= self.available_memory

    @property
    def verdict(self) -> list[str]:
        """Sentences about whether it fits."""
        return verdict(self.peak, self.available_memory, self.device, self.not_on_disk)

    def facts(self) -> dict[str, Any]:
        """Return all values as a JSON object."""
        return {**asdict(self), "fits": self.fits}


def estimate_encoding(plan: EncodePlan, output: Path, nodes: int = 1) -> EncodeDryRun:
    """Estimate what `plan` needs, and what encoding to `output` by `nodes` commands reads, writes and asks.

    Nothing is written or encoded, and no model downloaded.
    """
    device, dtype = plan.accelerator.device, plan.shell.torch_dtype
    process = warm_up(dtype) if device.type == "cpu" else 0
    model, simulation = SimulatedModel(plan.resolved, plan.stages.first_components), Simulation()
    named = [each.name for each in plan.resolved.family.components]
    named += [each.name for each in plan.resolved.side_networks]
    others = [name for name in named if name not in plan.stages.first_components]
    pipe = model.pipeline(simulation, dtype, lambda _: dtype, others)
    row: dict[str, Any] = dict(plan.dataset[largest(plan.dataset)])
    encoded = encode_row(pipe, plan.stages, plan.task, plan.data.extra_inputs, row, dtype)
    live, weights, entries = encoded.peak, encoded.weights, len(plan.dataset.numbers)
    tensors = {name: value for name, value in encoded.entry.items() if isinstance(value, torch.Tensor | list)}
    each = entry_bytes(tensors)
    groups = len(plan.stages.groups) + has_pictures(list(encoded.entry.values()), Image)
    return EncodeDryRun(
        entries=entries,
        process=process,
        weights=weights,
        activations=live * plan.batch_size,
        peak=process + weights + live * plan.batch_size,
        cache=entries * each,
        device=device.type,
        available_memory=available_memory(device),
        traffic=traffic_of_encoding(plan, output, each, groups, nodes),
        not_on_disk=tuple(model.missing),
    )
