"""Products in float8, emulated on the CPU: how far off they are, what has a gradient, and who is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.lora.layers import add_lora
from dsctl_core.memory import float8
from dsctl_core.memory.compile import compile_blocks
from dsctl_core.memory.float8 import refuse_without_float8, use_float8
from dsctl_core.options import TrainOptions

CUDA = torch.device("cuda")
TRAIN = {"model": "m", "dataset_base_path": "d", "output_path": "o", "lora_rank": 4}
# Relative errors of the output and of the gradient, beside float32: float8 has 3 bits after the point, bfloat16 7.
BF16, FLOAT8 = (0.01, 0.02), (0.03, 0.08)
TARGETS = ["to_q", "to_k", "to_v", "img_mlp.net.2"]


@pytest.fixture
def load(load_tiny_dit):
    """Return a function that makes the tiny denoiser with a LoRA, or trained whole."""

    def made(*, lora: bool) -> nn.Module:
        model = load_tiny_dit().requires_grad_(not lora)
        if lora:
            add_lora(model, TARGETS, rank=4)
            torch.manual_seed(1)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    nn.init.normal_(parameter, std=0.02)
        return model

    return made


def outcome(model: nn.Module, autocast: bool = False) -> tuple[Tensor, Tensor]:
    """Return the output and all gradients as one vector."""
    generator = torch.Generator().manual_seed(3)
    pictures = torch.randn(1, 24, model.config.in_channels, generator=generator)
    text = torch.randn(1, 7, model.config.joint_attention_dim, generator=generator)
    inputs = {"hidden_states": pictures, "encoder_hidden_states": text, "timestep": torch.tensor([0.5])}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = model(**inputs, img_shapes=[[(1, 4, 6)]], return_dict=False)[0].float()
    result.square().mean().backward()
    grads = [parameter.grad.float().flatten() for parameter in model.parameters() if parameter.grad is not None]
    return result.detach(), torch.cat(grads)


def error(ours: Tensor, expected: Tensor) -> float:
    return float((ours - expected).norm() / expected.norm())


@pytest.mark.parametrize("lora", [True, False])
def test_the_error_is_that_of_8_bits_and_everything_that_is_trained_gets_its_gradient(load, lora):
    exact, half = outcome(load(lora=lora)), outcome(load(lora=lora), autocast=True)
    model = load(lora=lora)
    assert use_float8(model, emulate=True) == 24
    ours = outcome(model)
    assert [len(each) for each in ours] == [len(each) for each in exact], "with 7 tokens, which 16 does not divide"
    for number in (0, 1):
        assert error(half[number], exact[number]) < BF16[number]
        assert BF16[number] / 2 < error(ours[number], exact[number]) < FLOAT8[number]


def test_a_frozen_weight_is_held_in_8_bits_and_gives_what_rounding_it_in_each_pass_gives(load):
    held, rounded = load(lora=True), load(lora=True)
    before = sum(parameter.nbytes for parameter in held.parameters())
    use_float8(held, emulate=True)
    use_float8(rounded, hold=False, emulate=True)
    assert sum(parameter.nbytes for parameter in held.parameters()) < 0.7 * before
    assert sum(parameter.nbytes for parameter in rounded.parameters()) == before
    for ours, theirs in zip(outcome(held, autocast=True), outcome(rounded, autocast=True), strict=True):
        assert torch.equal(ours, theirs)


def test_of_a_frozen_layer_autograd_keeps_no_input_and_makes_no_gradient_of_the_weight(load):
    model = load(lora=True)
    use_float8(model, emulate=True)
    layer = model.transformer_blocks[0].img_mlp.net[0].proj
    kept: list[Tensor] = []
    x = torch.randn(3, layer.in_features, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(x).sum().backward()
    assert layer.weight.grad is None and x.grad is not None
    assert x.shape not in [tensor.shape for tensor in kept]


class Block(nn.Module):
    """A frozen layer and a trained one."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 32).requires_grad_(False), nn.Linear(32, 16, bias=False)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.filterwarnings("ignore")  # of the compiler, which looks at tensors in ways torch warns of
def test_compiled_blocks_compute_the_same_in_one_graph():
    found = []
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for compiled in (False, True):
        model = Stack()
        assert use_float8(model, emulate=True) == 4
        if compiled:
            compile_blocks(model, torch.device("cpu"), backend="aot_eager")
        result = model(torch.linspace(-1, 1, 7 * 16).view(7, 16))
        result.square().sum().backward()
        found.append([result.detach(), *(block.down.weight.grad for block in model.blocks)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] and not counters["graph_break"]


class Odd(nn.Module):
    """A model whose layers have sizes that 16 does not divide, or multiply one row."""

    def __init__(self):
        super().__init__()
        block = nn.ModuleDict({"up": nn.Linear(16, 24), "img_mod": nn.Linear(16, 32), "norm": nn.Linear(16, 16)})
        self.blocks = nn.ModuleList([block])


def test_a_model_without_a_layer_that_fits_is_refused():
    with pytest.raises(UsageError, match="the Odd has no linear layer in repeated blocks with sizes that 16 divides"):
        use_float8(Odd(), emulate=True)


@pytest.mark.parametrize(
    ("capability", "precision", "problem"),
    [((8, 6), "bf16", "an A10 multiplies no float8"), ((9, 0), "fp16", "given with --mixed-precision fp16")],
)
def test_a_device_or_a_precision_without_float8_is_refused(monkeypatch, capability, precision, problem):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name="an A10"))
    with pytest.raises(UsageError, match=problem):
        refuse_without_float8(CUDA, precision)


def test_a_cpu_and_a_machine_without_torchao_are_refused(monkeypatch):
    with pytest.raises(UsageError, match="the CPU multiplies no float8"):
        refuse_without_float8(torch.device("cpu"), "bf16")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    monkeypatch.setattr(float8.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DsctlError, match="--float8 needs torchao") as caught:
        refuse_without_float8(CUDA, "bf16")
    assert caught.value.hint == 'pip install "dsctl[float8]"'


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({}, "--float8 is given without --compile"),
        ({"compile": True, "offload_blocks": 2}, "--offload-blocks and --compile are both given"),
        ({"compile": True, "network": "dora"}, "--float8 and --network dora are both given"),
        ({"compile": True, "device": "mps"}, "--compile is given with --device mps"),
    ],
)
def test_options_that_do_not_go_with_float8_are_refused(more, problem):
    with pytest.raises(UsageError, match=problem):
        TrainOptions(**TRAIN, float8=True, **more)
    assert TrainOptions(**TRAIN, float8=True, compile=True).memory.float8
