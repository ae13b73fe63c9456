"""Weights in 4 and 8 bits: close to what they were, never kept whole, and a LoRA on them is one for the whole model."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.lora import add_lora
from dsctl_core.memory.quantize import FORMATS, quantize, store_in_fp8
from dsctl_core.options.quantize import quantized_pairs, require_library
from tests import nf4

CPU = torch.device("cpu")
# The largest error of a weight of a normal distribution, relative to the norm: measured at 0.0065, 0.025 and 0.092.
ERRORS = {"int8": 0.01, "float8": 0.03, "nf4": 0.1}


@pytest.fixture(autouse=True)
def _bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nf4 as the paper defines it where bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        monkeypatch.setattr("dsctl_core.memory.quantize.bitsandbytes", lambda: nf4)


class Network(nn.Module):
    """Three blocks of two layers, and a layer that is in none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(64, 64)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)) for _ in range(3)]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return x


def packed(form: str) -> tuple[Network, Network]:
    """Return a network in the format `form`, and one that has the same weights whole."""
    network, whole = Network().requires_grad_(False), Network().requires_grad_(False)
    quantize(network, form, torch.float32, CPU)
    for own, layer in zip(whole.blocks.modules(), network.blocks.modules(), strict=True):
        if isinstance(own, nn.Linear):
            own.weight.data = layer.whole_weight(own.weight)  # type: ignore[operator]
    return network, whole


@pytest.mark.parametrize("form", FORMATS)
def test_outputs_and_gradients_are_those_of_the_weights_that_are_held(form: str) -> None:
    network, whole = packed(form)
    inputs = [torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    for model, x in zip((network, whole), inputs, strict=True):
        model(x).square().sum().backward()
    assert torch.equal(network(inputs[0]), whole(inputs[1]))
    assert inputs[0].grad is not None and torch.allclose(inputs[0].grad, inputs[1].grad, rtol=1e-5, atol=1e-6)
    before = Network()
    for own, held in zip(before.blocks.parameters(), whole.blocks.parameters(), strict=True):
        error = float((own - held).norm().detach() / own.norm().detach())
        assert error < ERRORS[form] and (error > 0) == (own.dim() == 2), "biases stay as they are"
    assert torch.equal(network.first.weight, before.first.weight), "layers outside of blocks stay as they are"


@pytest.mark.parametrize("form", [*FORMATS, "fp8"])
def test_no_whole_weight_is_kept_for_backward(form: str) -> None:
    network = Network().requires_grad_(False)
    held = sum(each.numel() * each.element_size() for each in network.blocks.parameters())
    if form == "fp8":
        store_in_fp8(network, torch.float32)
    else:
        quantize(network, form, torch.float32, CPU)
    blocks = [*network.blocks.parameters(), *network.blocks.buffers()]
    assert sum(each.numel() * each.element_size() for each in blocks) < held / (6 if form == "nf4" else 3)
    kept: list[torch.Size] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    x = torch.randn(2, 5, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(x).sum().backward()
    shapes = {torch.Size((64, 128)), torch.Size((128, 64))}
    assert kept and not shapes & set(kept)


@pytest.mark.parametrize("form", FORMATS)
def test_a_lora_on_packed_weights_learns_what_one_on_whole_weights_learns(form: str) -> None:
    losses, updates = [], []
    x, target = (torch.randn(8, 64, generator=torch.Generator().manual_seed(n)) for n in (2, 3))
    for is_packed in (False, True):
        network = Network().requires_grad_(False)
        add_lora(network, ["0", "2"], 4, None, seed=0)
        if is_packed:
            quantize(network, form, torch.float32, CPU)
        trained = [each for each in network.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        for _ in range(10):
            loss = (network(x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
        updates.append(torch.cat([each.detach().flatten() for each in trained]))
    assert losses[1] == pytest.approx(losses[0], rel=ERRORS[form])
    assert float(nn.functional.cosine_similarity(*updates, dim=0)) > 1 - ERRORS[form]


def test_what_cannot_be_packed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no linear layers in repeated blocks, so int8 has no effect"):
        quantize(nn.Sequential(nn.Conv2d(1, 1, 1)), "int8", torch.float32, CPU)
    with pytest.raises(UsageError, match="the dit is named by --fp8-models and by --quantize"):
        quantized_pairs(("dit=nf4",), ("dit",))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DsctlError, match="nf4 needs bitsandbytes") as caught:
        require_library("nf4")
    assert caught.value.hint == 'pip install "dsctl[quantize]"'
    require_library("int8")
