"""Weights on the host: same results and gradients to the bit, few blocks on the device, fetched ahead of use.

The device is the CPU here, to which a weight is copied as it would be to a GPU; streams are not exercised.
"""

import pytest
import torch
from torch import nn

from dsctl_core.errors import UsageError
from dsctl_core.lora.layers import add_lora
from dsctl_core.memory.offload import OffloadedLinear, offload_blocks, offloaded_numbers, spread
from dsctl_core.memory.recompute import gradient_checkpoint_forward

CPU = torch.device("cpu")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 4, bias=False)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Stack(nn.Module):
    def __init__(self, count=6):
        super().__init__()
        self.blocks, self.head, self.recompute = nn.ModuleList(Block() for _ in range(count)), nn.Linear(4, 2), False

    def forward(self, x):
        for block in self.blocks:
            x = gradient_checkpoint_forward(block, self.recompute, False, x)
        return self.head(x)


def stack(recompute=False, dtype=torch.float32):
    torch.manual_seed(0)
    model = Stack().to(dtype).requires_grad_(False)
    add_lora(model, ["up"], rank=2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    model.recompute = recompute
    return model


def outcome(model, autocast=False):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 5, 4, generator=generator).to(torch.bfloat16 if autocast else torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = model(x)
    y.float().square().sum().backward()
    return y, [x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("bf16", [False, True])
def test_results_and_gradients_are_the_same_to_the_bit(recompute, count, bf16):
    dtype = torch.bfloat16 if bf16 else torch.float32
    expected, gradients = outcome(stack(dtype=dtype), bf16)
    model = stack(recompute, dtype)
    offload_blocks(model, count, CPU)
    result, ours = outcome(model, bf16)
    assert torch.equal(result, expected)
    assert len(ours) == 13 and all(torch.equal(a, b) for a, b in zip(ours, gradients, strict=True))


@pytest.mark.parametrize("recompute", [False, True])
def test_two_blocks_are_there_at_most_and_each_comes_before_it_is_needed(recompute):
    model = stack(recompute)
    store = offload_blocks(model, 6, CPU)
    seen, fetch = [], store._fetch

    def watched(index):
        fetch(index)
        seen.append(len(store.resident))

    store._fetch = watched
    for _ in range(3):
        outcome(model)
    assert max(seen) == 2
    assert store.waited == 1, "only the very first block was not fetched ahead"


def test_the_weights_are_no_parameters_so_nothing_can_move_them():
    model = stack()
    count = sum(p.numel() for p in model.parameters())
    weights = {name: layer.weight.clone() for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    offload_blocks(model, 3, CPU)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, OffloadedLinear)}
    assert len(layers) == 6 and all(torch.equal(layer.weight, weights[name]) for name, layer in layers.items())
    assert sum(p.numel() for p in model.parameters()) == count - offloaded_numbers(model)
    assert offloaded_numbers(model) == 3 * 64
    model.double()
    assert {layer.weight.dtype for layer in layers.values()} == {torch.float32}


def test_trained_layers_stay_and_more_blocks_than_there_are_is_an_error():
    with pytest.raises(UsageError, match="has 6 blocks"):
        offload_blocks(stack(), 7, CPU)
    with pytest.raises(UsageError, match="are trained"):
        offload_blocks(Stack(), 2, CPU)


@pytest.mark.parametrize(("count", "among", "chosen"), [(1, 6, [3]), (2, 6, [1, 4]), (6, 6, list(range(6)))])
def test_the_blocks_are_evenly_spread(count, among, chosen):
    assert spread(count, among) == chosen
