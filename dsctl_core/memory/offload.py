"""Block offload: the frozen weights of some of a model's blocks wait in host memory and come ahead of their use.

Only the matrices of linear layers move; they are nearly all of a block. A layer that is offloaded keeps no weight on
the device and none in the autograd graph: its backward fetches the weight again. So this works in forward and
backward, with and without gradient checkpointing, and with LoRA layers on top.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from dsctl_core.errors import UsageError
from dsctl_core.memory.blocks import repeated_blocks

Weights = dict[nn.Module, Tensor]


def spread(count: int, among: int) -> list[int]:
    """Return `count` of the numbers 0..`among`-1, evenly spread."""
    return [(2 * number + 1) * among // (2 * count) for number in range(count)]


class OffloadedLinear(nn.Linear):
    """A frozen linear layer whose weight is on the host, and is no parameter: nothing that moves a model moves it."""

    host: Tensor
    store: BlockStore
    block: int

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight, (out, in), on the host."""
        return self.host

    def forward(self, input: Tensor) -> Tensor:
        """Return what the layer returns whose weight is on the device."""
        result: Tensor = _FrozenLinear.apply(input, self.bias, self)
        return result


class _FrozenLinear(torch.autograd.Function):
    """x @ W^T + b with a W that is fetched when it is needed, and has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: OffloadedLinear) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        return linear(x, layer.store.weight(layer), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        # In the dtype that forward computed in, which under autocast is that of the output.
        weight = ctx.layer.store.weight(ctx.layer).to(grad.dtype)
        return (grad @ weight).to(ctx.dtype), None, None


class BlockStore:
    """The offloaded weights of one model; of its blocks at most two are on `device`: that in use and the next.

    Which is next follows from the direction: up in the forward pass, down in the backward. On a GPU copies run on a
    stream of their own, from pinned memory, while the block in use computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.blocks: list[list[OffloadedLinear]] = []
        self.resident: dict[int, Weights] = {}
        self.arrivals: dict[int, Any] = {}
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.last, self.step = 0, 1
        self.waited = 0  # how often a block was not there when it was needed

    def add(self, layers: list[nn.Linear]) -> None:
        """Take over the weights of one block's layers."""
        for layer in layers:
            host = layer.weight.detach().to("cpu")
            del layer._parameters["weight"]
            layer.__class__ = OffloadedLinear
            assert isinstance(layer, OffloadedLinear)
            layer.host = host.pin_memory() if self.stream is not None else host
            layer.store, layer.block = self, len(self.blocks)
        self.blocks.append(layers)  # type: ignore[arg-type]

    def weight(self, layer: OffloadedLinear) -> Tensor:
        """Return the weight of `layer` on the device, fetching its block if it is not there and the next one ahead."""
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
            ahead = index - self.step  # the end: what follows is the way back
        # Freed before more is fetched. What still computes with them is waited for by the allocator.
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
        """Have the computation wait for the copies of a block, and their memory for the computation."""
        arrival = self.arrivals.pop(index, None)
        if arrival is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(arrival)
            for weight in self.resident[index].values():
                weight.record_stream(current)


def offload_blocks(model: nn.Module, count: int, device: torch.device) -> BlockStore:
    """Move the frozen linear weights of `count` of the repeated blocks of `model`, evenly spread, to the host.

    The rest of `model` has to be brought to `device` by the caller, before or after.
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
    """Return how many numbers of `model` are on the host, and so not among its parameters."""
    return sum(module.host.numel() for module in model.modules() if isinstance(module, OffloadedLinear))
