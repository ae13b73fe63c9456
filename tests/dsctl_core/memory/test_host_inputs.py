"""What checkpointing stores in main memory: the same gradients, and copies that are waited for and wait."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsctl_core.memory import host_inputs
from dsctl_core.memory.host_inputs import HostInputs, saved_by
from dsctl_core.memory.recompute import run_checkpointed

BLOCKS = 5


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(BLOCKS))

    def forward(self, x: Tensor, inputs: HostInputs | None) -> Tensor:
        for block in self.blocks:
            x = run_checkpointed(lambda x, block=block: torch.tanh(block(x)), True, inputs, x)
        return x


def outcome(model: nn.Module, inputs: HostInputs | None) -> list[Tensor]:
    x = torch.linspace(-1, 1, 12).view(3, 4).requires_grad_()
    y = model(x, inputs)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


def test_gradients_are_the_same_and_no_more_than_two_blocks_are_back_at_once():
    model, most, order = Stack(), 0, []
    expected = outcome(model, None)

    def pack(tensor: Tensor) -> tuple[int, Tensor]:
        order.append(("out", len(order)))
        return len(order) - 1, tensor.clone()

    def unpack(kept: tuple[int, Tensor]) -> Tensor:
        nonlocal most
        order.append(("back", kept[0]))
        inputs = made[-1]
        here = sum(each.tensor is not None for block in inputs.blocks for each in block.kept)
        most = max(most, here + 1)
        return kept[1].clone()

    made = []
    with saved_by(pack, unpack):
        made.append(HostInputs())
        found = outcome(model, made[-1])
    assert all(map(torch.equal, found, expected))
    places = [place for way, place in order if way == "back"]
    assert places == list(reversed(range(BLOCKS))), "each comes back once, the last first, and the next is there"
    assert most <= 2 and not any(block.leaving for block in made[-1].blocks)


class Stream:
    """A stream that notes what it waits for, and what is done on it."""

    def __init__(self, name: str, log: list[Any]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: Stream) -> None:
        self.log.append((self.name, "after", other.name, len(self.log)))

    def wait_event(self, event: tuple[str, int]) -> None:
        self.log.append((self.name, "after", *event))

    def record_event(self) -> tuple[str, int]:
        return self.name, len(self.log)

    def __enter__(self) -> None:
        self.log.append((self.name, "copies"))

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let tensors of the CPU be those of a GPU with two streams; return what these do, in order."""
    done: list[Any] = []
    compute = Stream("compute", done)
    answers = {
        "is_available": lambda: True,
        "Stream": lambda _: Stream("copies", done),
        "current_stream": lambda _: compute,
        "stream": lambda each: each,
    }
    monkeypatch.setattr(host_inputs, "torch", SimpleNamespace(cuda=SimpleNamespace(**answers), empty_like=_made(done)))
    monkeypatch.setattr(host_inputs, "_on_gpu", lambda tensor: True)
    monkeypatch.setattr(host_inputs, "pinned_like", torch.empty_like)
    return done


def _made(done: list[Any]) -> Any:
    def empty_like(tensor: Tensor, device: torch.device) -> Tensor:
        done.append(("compute", "allocates"))
        return torch.empty_like(tensor)

    return empty_like


def test_copies_wait_for_the_computation_before_them_and_are_waited_for_before_memory_is_used_again(log):
    model = Stack()
    plain = outcome(model, None)

    def noted(block: nn.Module, args: Any) -> None:
        log.append(("compute", "runs"))

    for block in model.blocks:
        block.register_forward_pre_hook(noted)
    found = outcome(model, HostInputs())
    assert all(map(torch.equal, found, plain))
    copies = [at for at, entry in enumerate(log) if entry[:2] == ("copies", "copies")]
    assert len(copies) == 2 * BLOCKS, "out and back, once each"
    for at in copies:
        waits = [entry for entry in log[:at] if entry[:3] == ("copies", "after", "compute")]
        assert waits and waits[-1][3] == at - 1, "of all that was computed before it"
    # The event of a copy is that of all copies before it.
    waited = [(at, entry[3]) for at, entry in enumerate(log) if entry[:3] == ("compute", "after", "copies")]
    runs = [at for at, entry in enumerate(log) if entry == ("compute", "runs")]
    assert len(runs) == 2 * BLOCKS
    for number, at in enumerate(runs[1:BLOCKS], start=1):
        before = copies[number - 1]
        assert any(before < event and when < at for when, event in waited), "what left is read no more"
    for number, at in enumerate(runs[BLOCKS:]):
        back = copies[BLOCKS + number]
        assert any(back < event and when < at for when, event in waited), "what is recomputed is there"
        if number + 1 < BLOCKS:
            assert copies[BLOCKS + number + 1] < at, "and the next is on its way meanwhile"


def test_memory_that_is_given_back_unused_is_waited_for(log):
    """Of a backward pass that ends with the second block from the end, the third has been fetched in vain."""
    model = Stack()
    x, seen = torch.ones(3, 4, requires_grad=True), []
    model.blocks[BLOCKS - 2].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    inputs: HostInputs | None = HostInputs()
    y = model(x, inputs)
    torch.autograd.grad(y.sum(), seen[0])
    last = max(at for at, entry in enumerate(log) if entry[:2] == ("copies", "copies"))
    assert not any(entry[:3] == ("compute", "after", "copies") for entry in log[last:])
    seen.clear()
    del y, inputs
    assert any(entry[:3] == ("compute", "after", "copies") and entry[3] > last for entry in log[last:])
