"""Move models between main memory and a GPU, without copying back what did not change there."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

Kept = dict[int, tuple[Tensor, int, Tensor]]  # by the id of a tensor on the device: that, its version, and its original


class HostCopies:
    """Keeps the weights of models in main memory while copies of them are on a GPU.

    A model that goes back then takes no time, where copying it takes as long as bringing it. Trained weights, and
    others that were written to on the GPU, are copied.
    """

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[nn.Module, Kept] = WeakKeyDictionary()

    def to_device(self, model: nn.Module, device: torch.device) -> None:
        """Move `model` to `device`, and keep its frozen weights in main memory if that is a GPU."""
        before = {name: tensor.detach() for name, tensor in _tensors(model) if _can_stay(tensor)}
        model.to(device)
        if device.type != "cuda":  # the memory of other devices is the main memory
            return
        moved = ((before[name], tensor) for name, tensor in _tensors(model) if name in before)
        self._kept[model] = {id(tensor): (tensor, tensor._version, host) for host, tensor in moved}

    def to_host(self, model: nn.Module) -> None:
        """Move `model` to main memory."""
        kept = self._kept.pop(model, None)
        if kept is None:  # it came by another way
            model.to("cpu")
            return

        def back(tensor: Tensor) -> Tensor:
            on_device, version, host = kept.get(id(tensor), (None, 0, tensor))
            same = tensor is on_device and tensor._version == version and tensor.dtype == host.dtype
            return host if same else tensor.to("cpu")

        model._apply(back)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())


def _can_stay(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and not tensor.requires_grad and not tensor.is_inference()
