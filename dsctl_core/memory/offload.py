"""Offload blocks: keep the frozen weights of some blocks in host memory, and prefetch them to the device.

Only the weights of linear layers are moved; they are nearly all of a block. An offloaded layer keeps no weight on the
device and none in the autograd graph: the backward pass fetches the weight again. Offload works in forward and
backward, with and without gradient checkpointing, and with LoRA layers on top.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dsctl_core.errors import UsageError
from dsctl_core.memory.blocks import repeated_blocks
from dsctl_core.memory.frozen_linear import FrozenLinear

Weights = dict[nn.Module, Tensor]


def spread(count: int, among: int) -> list[int]:
    """Return `count` evenly spaced integers from 0 to `among` - 1."""
    return [(2 * number + 1) * among // (2 * count) for number in range(count)]


class OffloadedLinear(FrozenLinear):
    """A frozen linear layer with its weight in host memory; it is not a parameter, so `model.to()` does not move it."""

    host: Tensor
    store: BlockStore
    block: int

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight (out, in) in host memory."""
        return self.host

    def whole_weight(self, like: Tensor) -> Tensor:
        """Return the weight (out, in) on the device, fetching it if necessary."""
        return self.store.weight(self)


class BlockStore:
    """The offloaded weights of one model; at most two blocks are on `device`: the one in use and the next.

    The next block is the following one in the forward pass, and the preceding one in the backward pass. On a GPU,
    copies from pinned memory run on a separate stream while the block in use computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.blocks: list[list[OffloadedLinear]] = []
        self.resident: dict[int, Weights] = {}
        self.arrivals: dict[int, Any] = {}
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.last, self.step = 0, 1
        self.waited = 0  # number of times a block was not on the device when it was needed

    def add(self, layers: list[nn.Linear]) -> None:
        """Add the layers of one block, and move their weights to host memory."""
        for layer in layers:
            host = layer.weight.detach().to("cpu")
            del layer._parameters["weight"]
            layer.__class__ = OffloadedLinear
            assert isinstance(layer, OffloadedLinear)
            layer.host = host.pin_memory() if self.stream is not None else host
            layer.store, layer.block = self, len(self.blocks)
        self.blocks.append(layers)  # type: ignore[arg-type]

    def weight(self, layer: OffloadedLinear) -> Tensor:
        """Return the weight of `layer` on the device, fetching its block if necessary and prefetching the next one."""
        index = layer.block
        if index != self.last or index not in self.resident:
            self._turn_to(index)
        return self.resident[index][layer]

    def _turn_to(self, index: int) -> None:
        self.step = (index > self.last) - (index < self.last) or self.step
        if index not in self.resident:
            self.waited += 1
            self._fetch(index)
        self._await(index)
        ahead = index + self.step
        if not 0 <= ahead < len(self.blocks):
            ahead = index - self.step  # at the end the direction is reversed
        # Free blocks before fetching more. The allocator waits for computations that still use them.
        self.resident = {n: weights for n, weights in self.resident.items() if n in (index, ahead)}
        if 0 <= ahead < len(self.blocks) and ahead not in self.resident:
            self._fetch(ahead)
        self.last = index

    def _fetch(self, index: int) -> None:
        if self.stream is None:
            self.resident[index] = {layer: layer.host.to(self.device, copy=True) for layer in self.blocks[index]}
            return
        with torch.cuda.stream(self.stream):
            self.resident[index] = {
                layer: layer.host.to(self.device, non_blocking=True) for layer in self.blocks[index]
            }
            self.arrivals[index] = self.stream.record_event()

    def _await(self, index: int) -> None:
        """Make the compute stream wait for the copies of a block, and keep their memory until it is done."""
        arrival = self.arrivals.pop(index, None)
        if arrival is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(arrival)
            for weight in self.resident[index].values():
                weight.record_stream(current)


def offload_blocks(model: nn.Module, count: int, device: torch.device) -> BlockStore:
    """Move the frozen linear weights of `count` evenly spaced repeated blocks of `model` to host memory.

    The caller moves the rest of `model` to `device`, before or after.
    """
    blocks = list(repeated_blocks(model).values())
    if count > len(blocks):
        raise UsageError(
            f"--offload-blocks is {count}, but the {type(model).__name__} has {len(blocks)} blocks",
            hint=f"give at most {len(blocks)}",
        )
    store = BlockStore(device)
    for index in spread(count, len(blocks)):
        layers = [
            module
            for name, module in blocks[index].named_modules()
            if isinstance(module, nn.Linear) and ".lora_" not in f".{name}" and not module.weight.requires_grad
        ]
        if not layers:
            raise UsageError(
                f"--offload-blocks is given, but the blocks of the {type(model).__name__} are trained",
                hint="leave it out: only frozen weights can wait on the host",
            )
        store.add(layers)
    return store


def offloaded_numbers(model: nn.Module) -> int:
    """Return the number of weight elements of `model` that are offloaded, and so are not among its parameters."""
    return sum(module.host.numel() for module in model.modules() if isinstance(module, OffloadedLinear))
