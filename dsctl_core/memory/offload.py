"""Offload blocks: keep the frozen weights of some blocks in host memory, and prefetch them to the device.

Only the weights of linear layers are moved; they are nearly all of a block. An offloaded layer keeps no weight on the
device and none in the autograd graph: the backward pass fetches the weight again. Offload works in forward and
backward, with and without gradient checkpointing, with LoRA layers on top, and with weights that are held in 4 or 8
bits, also those stored in fp8: these are fetched as they are held, with their scales, and made whole on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dsctl_core.errors import UsageError
from dsctl_core.memory.blocks import repeated_blocks
from dsctl_core.memory.frozen_linear import FrozenLinear
from dsctl_core.memory.pinned import page_aligned, pin
from dsctl_core.memory.quantize import QuantizedLinear
from dsctl_core.readable import counted

ALIGNED = 256  # bytes; where CUDA's own allocations begin, so that kernels read a weight as fast as one apart


def spread(count: int, among: int) -> list[int]:
    """Return `count` evenly spaced integers from 0 to `among` - 1."""
    return [(2 * number + 1) * among // (2 * count) for number in range(count)]


class Part(NamedTuple):
    """A tensor among the bytes of a block: where it begins, its dtype and its shape."""

    start: int
    dtype: torch.dtype
    shape: torch.Size

    def within(self, slab: Tensor) -> Tensor:
        """Return the tensor as a view of `slab`, the bytes of its block."""
        size = self.shape.numel() * self.dtype.itemsize
        return slab[self.start : self.start + size].view(self.dtype).view(self.shape)


class OffloadedLinear(FrozenLinear):
    """A frozen linear layer with its weight in host memory; it is not a parameter, so `model.to()` does not move it."""

    store: BlockStore
    block: int
    parts: dict[str, Part]  # "weight", and what goes with a weight that is held in fewer bits

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight (out, in) in host memory, or what it is held as."""
        return self.parts["weight"].within(self.store.hosts[self.block])

    def fetched(self) -> dict[str, Tensor]:
        """Return the parts on the device, fetching them if necessary."""
        slab = self.store.slab(self.block)
        return {name: part.within(slab) for name, part in self.parts.items()}

    def forward(self, input: Tensor) -> Tensor:
        """Return the output of the linear layer for `input` (..., in)."""
        self.store.comes_back = torch.is_grad_enabled()
        return super().forward(input)

    def whole_weight(self, like: Tensor) -> Tensor:
        """Return the weight (out, in) on the device."""
        return self.fetched()["weight"]


class OffloadedQuantizedLinear(OffloadedLinear, QuantizedLinear):
    """One whose weight is held in 4 or 8 bits, and made whole on the device."""

    def whole_weight(self, like: Tensor) -> Tensor:
        """Return the weight (out, in) in the dtype of the computation."""
        return self.unpacked(self.fetched())


def held_parts(layer: nn.Linear) -> dict[str, Tensor]:
    """Return the tensors that `layer` holds its weight as, by name."""
    return layer.held() if isinstance(layer, QuantizedLinear) else {"weight": layer.weight}


class BlockStore:
    """The offloaded weights of one model: a slab of host memory for each block, and two slabs on `device`.

    A slab has all weights of a block, one after the other, and is copied at once. On the device are the block in use
    and the next, which is the following one in the forward pass, and the preceding one in the backward pass. After the
    last comes the backward pass or, without gradients, the first again: drawing makes one pass after another. Nothing
    is allocated after the first copy, however far the host is ahead of a GPU.

    On a GPU, copies from pinned memory run on a stream of their own, beside the computation. A copy waits for all that
    was queued before it, among which is what reads the block that it replaces, and the computation for its copy.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.hosts: list[Tensor] = []
        self.slabs: list[Tensor] = []
        self.resident: dict[int, int] = {}  # the slab of each block that is on the device
        self.arrivals: dict[int, Any] = {}
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.last, self.step = 0, 1
        self.comes_back = True  # whether a backward pass follows
        self.waited = 0  # number of times a block was not on the device when it was needed

    def add(self, layers: list[nn.Linear]) -> None:
        """Add the layers of one block, and move their weights to host memory."""
        held = [held_parts(layer) for layer in layers]
        sizes = (-(-tensor.nbytes // ALIGNED) * ALIGNED for parts in held for tensor in parts.values())
        starts = [0, *accumulate(sizes)]
        host = page_aligned(layers[0].weight.detach(), starts.pop())
        if self.stream is not None:
            pin(host, self, self.stream)
        self.hosts.append(host)
        places = iter(starts)
        for layer, parts in zip(layers, held, strict=True):
            for name in parts:
                (layer._parameters if name == "weight" else layer._buffers).pop(name)
            layer.__class__ = OffloadedQuantizedLinear if isinstance(layer, QuantizedLinear) else OffloadedLinear
            assert isinstance(layer, OffloadedLinear)
            layer.store, layer.block = self, len(self.hosts) - 1
            layer.parts = {name: Part(next(places), each.dtype, each.shape) for name, each in parts.items()}
            for name, part in layer.parts.items():
                part.within(host).copy_(parts[name].detach())

    def slab(self, index: int) -> Tensor:
        """Return the bytes of a block on the device, fetching it if necessary and prefetching the next one."""
        if index != self.last or index not in self.resident:
            self._turn_to(index)
        return self.slabs[self.resident[index]]

    def _turn_to(self, index: int) -> None:
        self.step = (index > self.last) - (index < self.last) or self.step
        if index not in self.resident:
            self.waited += 1
            self._fetch(index, 1 - self.resident.get(self.last, 1))
        arrival = self.arrivals.pop(index, None)
        if arrival is not None:
            torch.cuda.current_stream(self.device).wait_event(arrival)
        ahead = index + self.step
        if not 0 <= ahead < len(self.hosts):
            ahead = 0 if self.step > 0 and not self.comes_back else index - self.step
        if 0 <= ahead < len(self.hosts) and ahead not in self.resident:
            self._fetch(ahead, 1 - self.resident[index])
        self.last = index

    def _fetch(self, index: int, number: int) -> None:
        """Copy a block into the slab `number`, in place of the one that is there."""
        if len(self.slabs) <= number:
            self.allocate()
        for replaced in [block for block, slab in self.resident.items() if slab == number]:
            del self.resident[replaced]
            self.arrivals.pop(replaced, None)
        self.resident[index] = number
        host = self.hosts[index]
        target = self.slabs[number][: host.numel()]
        if self.stream is None:
            target.copy_(host)
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            target.copy_(host, non_blocking=True)
            self.arrivals[index] = self.stream.record_event()

    def allocate(self) -> None:
        """Make the slabs on the device; the first copy does so where it is not done before."""
        # What is made in inference mode could not be written to outside of it.
        with torch.inference_mode(mode=False):
            size = max(host.numel() for host in self.hosts)
            self.slabs = [self.hosts[0].new_empty(size, device=self.device) for _ in self.hosts[:2]]
        if self.stream is not None:
            for slab in self.slabs:
                slab.record_stream(self.stream)  # whoever gets this memory next waits for copies that are under way


def offload_blocks(model: nn.Module, count: int, device: torch.device) -> BlockStore:
    """Move the frozen linear weights of `count` evenly spaced repeated blocks of `model` to host memory.

    The caller moves the rest of `model` to `device`, before or after.
    """
    blocks = list(repeated_blocks(model).values())
    if count > len(blocks):
        raise UsageError(
            f"--offload-blocks is {count}, but the {type(model).__name__} has {counted(len(blocks), 'block')}",
            hint=f"give at most {len(blocks)}",
        )
    store = BlockStore(device)
    for index in spread(count, len(blocks)):
        layers = movable(blocks[index])
        if not layers:
            raise UsageError(
                f"--offload-blocks is given, but the blocks of the {type(model).__name__} are trained",
                hint="leave it out: only frozen weights can wait on the host",
            )
        store.add(layers)
    return store


def movable(block: nn.Module) -> list[nn.Linear]:
    """Return the frozen linear layers of `block`, whose weights can wait in host memory."""
    return [
        module
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in f".{name}" and not module.weight.requires_grad
    ]


def free_slabs(model: nn.Module) -> None:
    """Give back the memory that offloaded blocks of `model` are copied to; the next use makes it anew."""
    for store in {module.store for module in model.modules() if isinstance(module, OffloadedLinear)}:
        store.slabs, store.resident, store.arrivals = [], {}, {}


def held_bytes(block: nn.Module) -> int:
    """Return the bytes of `block` that can wait in host memory."""
    return sum(tensor.nbytes for layer in movable(block) for tensor in held_parts(layer).values())


def bytes_saved(sizes: Sequence[int], count: int) -> int:
    """Return the bytes that leave the device with `count` offloaded blocks of a model whose blocks have `sizes`."""
    chosen = [sizes[index] for index in spread(count, len(sizes))]
    return sum(chosen) - max(chosen, default=0) * min(count, 2)


def offloaded_numbers(model: nn.Module) -> int:
    """Return the number of weight elements of `model` that are offloaded, and so are not among its parameters."""
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, OffloadedLinear))
