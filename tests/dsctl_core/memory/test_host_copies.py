"""Weights that did not change on a GPU come back as they were in main memory; others are copied."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dsctl_core.memory.host_copies import HostCopies

GPU = torch.device("cuda")


class OnAGpu(nn.Module):
    """Has a frozen weight that another module shares, one that is trained, and a buffer; a GPU is more main memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.trained = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.arange(3.0))
        self.first.requires_grad_(False)

    def to(self, *_: Any) -> OnAGpu:
        return self._apply(torch.clone)


def places(model: nn.Module) -> dict[str, int]:
    return {name: each.data_ptr() for name, each in model.state_dict().items()}


def test_frozen_weights_come_back_without_a_copy_and_changed_ones_with_their_values():
    model, copies = OnAGpu(), HostCopies()
    before, values = places(model), {name: each.clone() for name, each in model.state_dict().items()}
    copies.to_device(model, GPU)
    assert not set(before.values()) & set(places(model).values())
    with torch.no_grad():
        model.first.bias.add_(1)
        model.trained.weight.add_(1)
    copies.to_host(model)
    after = places(model)
    frozen = ["first.weight", "second.weight", "table"]
    assert [after[name] for name in frozen] == [before[name] for name in frozen]
    assert model.second.weight is model.first.weight
    values["first.bias"] += 1
    values["trained.weight"] += 1
    assert all(torch.equal(each, values[name]) for name, each in model.state_dict().items())


def test_a_model_that_came_by_another_way_and_one_of_another_device_are_copied():
    model, copies = OnAGpu(), HostCopies()
    seen = set(places(model).values())
    for device in (None, torch.device("mps")):
        if device is not None:
            copies.to_device(model, device)
        before = set(places(model).values())
        copies.to_host(model)
        assert not before & set(places(model).values())
    assert not seen & set(places(model).values())
