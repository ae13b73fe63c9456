"""Weights on the host: same results and gradients to the bit, few blocks on the device, fetched ahead of use.

The device is the CPU here, to which a weight is copied as it would be to a GPU; streams are not exercised.
"""

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from dsctl_core.errors import UsageError
from dsctl_core.lora.layers import add_lora
from dsctl_core.memory.offload import (
    OffloadedLinear,
    OffloadedQuantizedLinear,
    bytes_saved,
    held_bytes,
    offload_blocks,
    offloaded_numbers,
    spread,
)
from dsctl_core.memory.options import MemorySettings
from dsctl_core.memory.quantize import BITSANDBYTES, FORMATS, packed_numbers, quantize, store_in_fp8
from dsctl_core.memory.recompute import KEEPS, gradient_checkpoint_forward
from tests import nf4

CPU = torch.device("cpu")


class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.norm, self.up = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Stack(nn.Module):
    def __init__(self, count=6, width=4):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(count))
        self.head, self.recompute = nn.Linear(width, 2), False

    def forward(self, x):
        for block in self.blocks:
            x = gradient_checkpoint_forward(block, self.recompute, False, x)
        return self.head(x)


def stack(recompute=False, dtype=torch.float32, width=4):
    torch.manual_seed(0)
    model = Stack(width=width).to(dtype).requires_grad_(False)
    add_lora(model, ["up"], rank=2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    model.recompute = recompute
    return model


def outcome(model, autocast=False, width=4):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 5, width, generator=generator).to(torch.bfloat16 if autocast else torch.float32).requires_grad_()
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


@pytest.mark.parametrize("form", [*BITSANDBYTES, *FORMATS, "fp8"])
def test_weights_in_few_bits_wait_as_they_are_held_and_give_the_same_to_the_bit(monkeypatch, form):
    if importlib.util.find_spec("bitsandbytes") is None:
        monkeypatch.setattr("dsctl_core.memory.quantize.bitsandbytes", lambda: nf4)
    monkeypatch.setattr("dsctl_core.memory.quantize.FORMATS", {**FORMATS, **BITSANDBYTES})
    models = [stack(width=64) for _ in range(2)]
    for model in models:
        if form == "fp8":
            store_in_fp8(model, torch.float32)
        else:
            quantize(model, form, torch.float32, CPU)
    held = sum(map(held_bytes, models[1].blocks))
    numbers = offloaded_numbers(models[1]) + packed_numbers(models[1]) + sum(p.numel() for p in models[1].parameters())
    store = offload_blocks(models[1], 6, CPU)
    assert sum(host.numel() for host in store.hosts) < held + 6 * 6 * 256, "what is copied is what is held, aligned"
    assert held < (0.2 if form in ("nf4", "fp4") else 0.3) * 4 * 6 * 2 * 64 * 128
    layers = [layer for layer in models[1].modules() if isinstance(layer, OffloadedQuantizedLinear)]
    assert len(layers) == 12 and not any(layer._buffers for layer in layers)
    after = offloaded_numbers(models[1]) + packed_numbers(models[1]) + sum(p.numel() for p in models[1].parameters())
    assert after == numbers, "every number of the model is counted once"
    (result, gradients), (ours, found) = (outcome(model, width=64) for model in models)
    assert torch.equal(ours, result) and all(map(torch.equal, found, gradients))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("count", "fetches"), [(1, 1), (2, 2), (6, 26)])
def test_two_slabs_are_made_once_and_each_block_comes_before_it_is_needed(recompute, count, fetches):
    model = stack(recompute)
    store = offload_blocks(model, count, CPU)
    fetched, fetch = [], store._fetch

    def watched(index, number):
        in_use = store.last if store.last in store.resident else None
        fetch(index, number)
        fetched.append((index, in_use))

    store._fetch = watched
    slabs = set()
    for _ in range(3):
        outcome(model)
        slabs |= {slab.data_ptr() for slab in store.slabs}
    assert len(slabs) == len(store.slabs) == min(count, 2)
    assert len(fetched) == fetches, "two directions a pass, and a block at either end stays"
    assert store.waited == 1, "only the very first block was not fetched ahead"


@pytest.mark.parametrize(("count", "fetches"), [(1, 1), (2, 2), (3, 10), (6, 19)])
def test_of_the_passes_of_a_drawing_each_block_comes_once_a_pass_and_before_it_is_needed(count, fetches):
    model, x = stack(), torch.randn(3, 5, 4)
    expected = model(x).detach()
    store = offload_blocks(model, count, CPU)
    fetched, fetch = [], store._fetch
    store._fetch = lambda index, number: (fetched.append(index), fetch(index, number))
    with torch.no_grad():
        assert all(torch.equal(model(x), expected) for _ in range(3)), "as of two steps with guidance"
    assert len(fetched) == fetches, "of the pass that comes next the first is there already"
    assert store.waited == 1, "only the very first block was not fetched ahead"


def test_a_weight_is_never_overwritten_while_its_block_runs_in_any_order():
    model = stack()
    expected = {layer: layer.weight.clone() for layer in model.modules() if isinstance(layer, nn.Linear)}
    offload_blocks(model, 6, CPU)
    layers = [layer for layer in expected if isinstance(layer, OffloadedLinear)]
    generator = torch.Generator().manual_seed(0)
    asked = [layers[number] for number in torch.randint(len(layers), (200,), generator=generator).tolist()]
    assert all(torch.equal(layer.whole_weight(torch.empty(0)), expected[layer]) for layer in asked)
    assert len(set(asked)) == len(layers) == 12


def test_a_copy_waits_for_what_reads_the_block_that_it_replaces_and_the_computation_for_its_copy(monkeypatch):
    """A model of two streams: each runs what it was given in order, up to the events that it waits for."""
    log = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            log.append((self.name, "after", other.name, len(log)))

        def wait_event(self, event):
            log.append((self.name, "after", *event))

        def record_event(self):
            return "copies", len(log)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    compute = Stream("compute")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: compute)
    monkeypatch.setattr(torch.cuda, "stream", lambda each: each)
    monkeypatch.setattr(Tensor, "record_stream", lambda *_: None)
    model = stack()
    store = offload_blocks(model, 6, CPU)
    store.stream = Stream("copies")
    fetch, slab = store._fetch, store.slab

    def copied(index, number):
        fetch(index, number)
        log.append(("copies", "writes", number, index))

    def read(index):
        found = slab(index)
        log.append(("compute", "reads", store.resident[index], index))
        return found

    store._fetch, store.slab = copied, read
    outcome(model)
    writes = [at for at, (_, what, *_) in enumerate(log) if what == "writes"]
    assert len(writes) > 8
    for at in writes:
        _, _, number, index = log[at]
        waited = max(entry[3] for entry in log[:at] if entry[:3] == ("copies", "after", "compute"))
        earlier = [
            n for n, (_, what, slab_number, _) in enumerate(log[:at]) if (what, slab_number) == ("reads", number)
        ]
        assert all(n < waited for n in earlier)
        later = next((n for n in range(at, len(log)) if log[n][1:] == ("reads", number, index)), None)
        if later is not None:
            assert any(entry[:3] == ("compute", "after", "copies") for entry in log[at:later])


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


def test_what_offload_saves_counts_the_blocks_that_it_takes_and_two_of_the_largest_stay():
    sizes = [30] * 4 + [10] * 8
    assert [bytes_saved(sizes, count) for count in (0, 1, 2, 12)] == [0, 0, 30 + 10 - 60, 4 * 30 + 8 * 10 - 60]
    model = stack()
    before = sum(p.nbytes for p in model.parameters())
    store = offload_blocks(model, 5, CPU)
    store.allocate()
    held = sum(p.nbytes for p in model.parameters())
    weights = 2 * 32 * 4  # bytes of the two matrices of a block
    assert before - held - 2 * weights == bytes_saved([weights] * 6, 5)
    assert sum(slab.numel() for slab in store.slabs) == 2 * 2 * 256, "each of two weights begins at a multiple of 256"


def test_numbers_of_blocks_are_those_of_the_denoiser_and_not_of_a_control_network_beside_it():
    """The network beside it is trained, and has fewer blocks."""
    denoiser, beside = stack(), Stack(2)
    MemorySettings(checkpointing_blocks=4, offload_blocks=3).apply([denoiser, beside], CPU, [denoiser])
    assert offloaded_numbers(denoiser) > 0 == offloaded_numbers(beside)
    assert sum(getattr(block, KEEPS, False) for block in denoiser.blocks) == 2
    assert not any(getattr(block, KEEPS, False) for block in beside.blocks)
    with pytest.raises(UsageError, match="the blocks of the Stack are trained"):
        MemorySettings(offload_blocks=1).apply([beside], CPU, [beside])
