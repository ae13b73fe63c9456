"""A LoRA for one call: the sum of its updates, for each sample its own, and nothing left of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dsctl_core.errors import DsctlError
from dsctl_core.lora.applied import lora_applied
from dsctl_core.lora.formats import LoraLayer
from dsctl_core.memory import gradient_checkpoint_forward


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def update(seed: int, scale: float = 1.0) -> LoraLayer:
    return LoraLayer(random(2, 4, seed=seed).requires_grad_(), random(3, 2, seed=seed + 9).requires_grad_(), scale)


@pytest.fixture
def model() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).requires_grad_(False)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(random(*parameter.shape, seed=number))
    return model


def with_weights(model: nn.Module, given: Tensor, updates: list[LoraLayer]) -> Tensor:
    """What the model computes with the updates in the weights of its last layer."""
    added = sum(each.scale * each.up @ each.down for each in updates)
    return nn.functional.linear(model[:2](given), model[2].weight + added, model[2].bias)  # type: ignore[index]


def test_several_updates_are_summed_and_gone_afterwards(model: nn.Module) -> None:
    given, updates = random(5, 4), [update(1), update(2, 0.5)]
    before = model(given)
    with lora_applied({"dit": model}, {"dit": {"2": [updates]}}):
        steered = model(given)
    torch.testing.assert_close(steered, with_weights(model, given, updates))
    assert torch.equal(model(given), before)
    with pytest.raises(ValueError, match="stop"), lora_applied({"dit": model}, {"dit": {"2": [updates]}}):
        raise ValueError("stop")
    assert torch.equal(model(given), before)


def test_each_sample_of_a_batch_has_its_own(model: nn.Module) -> None:
    given, samples = random(2, 5, 4), [[update(1)], [update(2), update(3)]]
    with lora_applied({"dit": model}, {"dit": {"2": samples}}):
        steered = model(given)
        with pytest.raises(DsctlError, match="a batch of 3 has LoRAs for 2 samples"):
            model(random(3, 5, 4))
    for row, own, updates in zip(steered, given, samples, strict=True):
        torch.testing.assert_close(row, with_weights(model, own, updates))


@pytest.mark.parametrize("offload", [False, True])
def test_it_is_in_force_when_a_block_is_computed_again(model: nn.Module, offload: bool) -> None:
    given, layer = random(5, 4), update(1)
    leaves = [layer.down, layer.up]
    expected = torch.autograd.grad(with_weights(model, given, [layer]).square().sum(), leaves)
    with lora_applied({"dit": model}, {"dit": {"2": [[layer]]}}):
        made = gradient_checkpoint_forward(model, True, offload, given)
    for one, other in zip(torch.autograd.grad(made.square().sum(), leaves), expected, strict=True):
        torch.testing.assert_close(one, other)
    assert not any(each._forward_hooks for each in model.modules())


def test_the_output_keeps_the_dtype_of_the_layer(model: nn.Module) -> None:
    half = model.bfloat16()
    with lora_applied({"dit": half}, {"dit": {"2": [[update(1)]]}}):
        assert half(random(5, 4).bfloat16()).dtype is torch.bfloat16
