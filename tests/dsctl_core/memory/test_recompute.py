"""Gradient checkpointing changes neither results nor gradients, and does recompute."""

import pytest
import torch
from torch import nn

from dsctl_core import gradient_checkpoint_forward
from dsctl_core.errors import UsageError
from dsctl_core.memory.recompute import checkpoint_some


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


class Stack(nn.Module):
    """Six blocks that are run through gradient checkpointing."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Counting() for _ in range(6))

    def forward(self, x):
        for block in self.blocks:
            x = gradient_checkpoint_forward(block, True, False, x)
        return x


@pytest.mark.parametrize(("count", "chosen"), [(6, range(6)), (5, range(5)), (3, (0, 2, 4)), (1, (0,))])
def test_only_the_chosen_blocks_are_computed_twice_and_the_last_not_before_all_are(count, chosen):
    torch.manual_seed(0)
    model, x = Stack(), torch.randn(3, 4)
    model(x).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for block in model.blocks:
        block.calls = 0
    checkpoint_some(model, count)
    model(x).sum().backward()
    assert [block.calls for block in model.blocks] == [2 if n in chosen else 1 for n in range(6)]
    assert all(torch.equal(p.grad, e) for p, e in zip(model.parameters(), expected, strict=True))


def test_more_blocks_than_there_are_is_an_error():
    with pytest.raises(UsageError, match="has 6 blocks"):
        checkpoint_some(Stack(), 7)
