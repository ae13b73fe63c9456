"""A LoRA in fewer kernels: bit-equal without autocast, and with it nearer to float32 than peft's sums."""

import copy

import pytest
import torch
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dsctl_core.lora.adapters import TRAINED, NetworkSettings, add_trained
from dsctl_core.lora.dropout import dropouts_of, seed_dropout
from dsctl_core.lora.fused import FusedLoraLinear


class Operations(TorchDispatchMode):
    """Lists the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def layers(dtype=torch.float32, **settings):
    """Return a model of one layer with a LoRA, and the same with peft's own layer."""
    torch.manual_seed(0)
    ours = nn.ModuleDict({"to_q": nn.Linear(24, 16)}).to(dtype).requires_grad_(False)
    add_trained(ours, ["to_q"], NetworkSettings(rank=4, alpha=2, **settings), 0)
    nn.init.normal_(ours["to_q"].lora_B[TRAINED].weight)
    theirs = copy.deepcopy(ours)
    theirs["to_q"].__class__ = Linear
    assert type(ours["to_q"]) is FusedLoraLinear
    for model in (ours, theirs):
        seed_dropout(dropouts_of(model), [5, 6])
    return ours["to_q"], theirs["to_q"], torch.randn(2, 7, 24)


def outcome(layer, x, autocast):
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = layer(x)
    trained = [p for p in layer.parameters() if p.requires_grad]
    return [result.detach(), *torch.autograd.grad(result.float().square().sum(), [x, *trained])]


@pytest.mark.parametrize("settings", [{}, {"dropout": 0.5}, {"use_dora": True}])
def test_without_autocast_and_for_a_dora_it_is_peft_to_the_bit(settings):
    ours, theirs, x = layers(**settings)
    for autocast in (False, True) if "use_dora" in settings else (False,):
        assert all(map(torch.equal, outcome(ours, x, autocast), outcome(theirs, x, autocast)))


@pytest.mark.parametrize("settings", [{}, {"dropout": 0.5}])
def test_under_autocast_results_and_gradients_are_as_near_to_float32_as_those_of_peft(settings):
    ours, theirs, x = layers(torch.bfloat16, **settings)
    x = x.bfloat16().float()
    exact = copy.deepcopy(theirs).float()
    wanted = outcome(exact, x, False)
    for found, before, right in zip(outcome(ours, x, True), outcome(theirs, x, True), wanted, strict=True):
        assert found.dtype == before.dtype and found.shape == before.shape
        error, other = (float((each.float() - right).norm() / right.norm()) for each in (found, before))
        assert error <= max(1.1 * other, 2**-8)


def test_the_input_is_cast_once_and_the_output_is_read_and_written_by_products_alone():
    ours, theirs, x = layers(torch.bfloat16)
    found = []
    for layer in (ours, theirs):
        with Operations() as operations, torch.autocast("cpu", torch.bfloat16):
            layer(x)
        found.append(operations.names)
    assert found[0].count("_to_copy") == 3, "the input, and both matrices"
    assert found[1].count("_to_copy") > 3
    assert "add" not in found[0] and "add" in found[1]
    assert found[0].count("mul") == 1, "the scale, on the product of the rank's size"
