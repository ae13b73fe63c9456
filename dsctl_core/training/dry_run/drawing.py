"""Predict the memory that `dsctl infer` needs of a GPU, on fake tensors, without loading any weights.

The pipeline with short networks draws in two steps, while the bytes of its tensors are counted. What is beside them,
the components that run and those that wait, follows from sizes. All of that is linear in the number of blocks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from dsctl_core.memory.blocks import repeated_blocks
from dsctl_core.memory.fused import use_fused_norms
from dsctl_core.memory.offload import bytes_saved, held_bytes
from dsctl_core.memory.quantize import quantize
from dsctl_core.placement import Placement
from dsctl_core.training.dry_run.fake_tensors import KnownAnswers, LiveBytes, Simulation, tensor_bytes
from dsctl_core.training.dry_run.gpu_rules import cuda_autocast
from dsctl_core.training.dry_run.simulated import SimulatedModel

if TYPE_CHECKING:
    from dsctl_core.families.resolve import ResolvedModel
    from dsctl_core.pipeline import BasePipeline

STEPS = 2
DEPTH = 3  # blocks of each kind: a kind has one less in the second run, and with one alone the first is the last


@dataclass(frozen=True)
class Moment:
    """The time from one change of what is on the device to the next: the components in use, and bytes of tensors."""

    components: frozenset[str]
    tensors: float


@dataclass(frozen=True)
class DrawingMemory:
    """What a drawing takes, in bytes: at each of its moments, and for the weights of each component.

    `blocks` are the sizes of the blocks of each denoiser that can wait in main memory.
    """

    moments: tuple[Moment, ...]
    weights: Mapping[str, float]
    blocks: Mapping[str, tuple[int, ...]]

    @property
    def most_blocks(self) -> int:
        """The largest number of blocks of a denoiser that can wait."""
        return min(map(len, self.blocks.values()), default=0)

    def peak(self, *, apart: bool = False, waiting_blocks: int = 0) -> int:
        """Return the most bytes on the device at once, without what the device takes itself.

        All components are there, and of several denoisers one; with `apart`, only those in use. `waiting_blocks` of
        each denoiser wait in main memory.
        """
        saved = {name: bytes_saved(sizes, waiting_blocks) for name, sizes in self.blocks.items() if waiting_blocks}
        weights = {name: size - saved.get(name, 0) for name, size in self.weights.items()}
        if apart:
            return round(max(m.tensors + sum(weights.get(name, 0) for name in m.components) for m in self.moments))
        acting = max(weights.pop(name) for name in self.blocks)
        return round(max(moment.tensors for moment in self.moments) + acting + sum(weights.values()))


def drawing_memory(
    resolved: ResolvedModel,
    call: Mapping[str, Any],
    dtype: torch.dtype,
    formats: Mapping[str, str] | None = None,
    depth: int | None = None,
) -> DrawingMemory:
    """Return what a drawing takes.

    Args:
        resolved: The model.
        call: The arguments of the call of its pipeline; the number of steps does not matter.
        dtype: The dtype of the weights.
        formats: The formats of quantized components by name.
        depth: The number of blocks of each kind that the denoisers have (None: all).
    """
    model, packed = SimulatedModel(resolved, None, DEPTH if depth is None else depth), formats or {}
    pipe: Any = model.pipeline(Simulation(), dtype, lambda _: dtype)
    for name, form in packed.items():
        quantize(pipe.component(name), form, dtype, torch.device("cpu"))
    for network in pipe.iteration_modules().values():
        use_fused_norms(network)
    found = _measured(pipe, call)
    if depth is not None:
        return found
    base = _measured(pipe, call)  # what the first drawing leaves for others, such as tables, is there
    for kind, length in model.cut.items():
        removed = [(blocks, blocks.pop(-1)) for network in pipe.denoiser_modules() for blocks in _kinds(network, kind)]
        shorter = _measured(pipe, call)
        for blocks, block in removed:
            blocks.append(block)
        found = _with_more(found, base, shorter, length - DEPTH)
    whole = {name: tuple(_full_length(pipe.component(name), model.cut)) for name in found.blocks}
    return replace(found, blocks=whole)


def _kinds(network: nn.Module, kind: str) -> list[Any]:
    return [module for name, module in network.named_modules() if name == kind]


def _with_more(found: DrawingMemory, base: DrawingMemory, shorter: DrawingMemory, more: int) -> DrawingMemory:
    """Return `found` with `more` blocks of the kind of which `shorter` has one less than `base`."""
    moments = tuple(
        replace(moment, tensors=moment.tensors + more * (one.tensors - other.tensors))
        for moment, one, other in zip(found.moments, base.moments, shorter.moments, strict=True)
    )
    weights = {name: size + more * (base.weights[name] - shorter.weights[name]) for name, size in found.weights.items()}
    return replace(found, moments=moments, weights=weights)


def _full_length(network: nn.Module, lengths: Mapping[str, int]) -> list[int]:
    """Return the bytes of the blocks of a network that can wait, as many as there are; the last stands for the rest."""
    found: dict[str, list[int]] = {}
    for name, block in repeated_blocks(network).items():
        found.setdefault(name.rpartition(".")[0], []).append(held_bytes(block))
    return [size for kind, sizes in found.items() for size in sizes + sizes[-1:] * (lengths.get(kind, 0) - len(sizes))]


def _measured(pipe: BasePipeline, call: Mapping[str, Any]) -> DrawingMemory:
    """Return what a drawing by `pipe` takes, as it is."""
    live = LiveBytes()
    pipe.placement = noted = _Noted(live)
    with _Shown(), live, cuda_autocast(), torch.no_grad():
        pipe(**{**call, "num_inference_steps": STEPS})
    noted.ends()
    weights = {name: tensor_bytes([*each.parameters(), *each.buffers()]) for name, each in pipe.components.items()}
    denoisers = [each.name for each in pipe.parts.denoisers]
    blocks = {name: tuple(_full_length(pipe.component(name), {})) for name in denoisers}
    return DrawingMemory(tuple(noted.moments), weights, blocks)


class _Shown(KnownAnswers):
    """Makes pictures of fake pixels, which are black: their sum, which tells that they are finite, is 0."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__float__ and isinstance(args[0], FakeTensor):
            return 0.0
        if func is Tensor.numpy and isinstance(args[0], FakeTensor):
            return np.zeros(args[0].shape, dtype=str(args[0].dtype).removeprefix("torch."))
        return super().__torch_function__(func, types, args, kwargs)


class _Noted(Placement):
    """Notes the components that are asked for, and the peak between; it moves none."""

    def __init__(self, live: LiveBytes) -> None:
        super().__init__()
        self.live, self.components, self.moments = live, frozenset[str](), list[Moment]()

    def make_room(self, pipe: BasePipeline, names: Collection[str]) -> None:
        """Begin the next moment."""
        self.ends()
        self.components = frozenset(names)

    def move_away(self, pipe: BasePipeline, names: Collection[str]) -> None:
        """Move nothing: what is on the device follows from the moments."""

    def ends(self) -> None:
        """End the moment."""
        self.moments.append(Moment(self.components, float(self.live.peak)))
        self.live.start_peak()
