"""Gradient checkpointing changes neither results nor gradients, and does recompute."""

import pytest
import torch
from torch import nn

from dsctl_core import gradient_checkpoint_forward


class Counting(nn.Module):
    """A block that counts its calls."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 4), 0

    def forward(self, x, shift=0.0):
        self.calls += 1
        return torch.tanh(self.layer(x)) + shift


@pytest.mark.parametrize(("recompute", "offload", "calls"), [(False, False, 1), (True, False, 2), (True, True, 2)])
def test_results_and_gradients_are_those_of_a_plain_call(recompute, offload, calls):
    torch.manual_seed(0)
    block, x = Counting(), torch.randn(3, 4, requires_grad=True)
    plain = block(x, shift=0.5)
    expected = torch.autograd.grad(plain.sum(), [x, *block.parameters()])
    block.calls = 0
    result = gradient_checkpoint_forward(block, recompute, offload, x, shift=0.5)
    gradients = torch.autograd.grad(result.sum(), [x, *block.parameters()])
    assert torch.equal(result, plain)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
    assert block.calls == calls
