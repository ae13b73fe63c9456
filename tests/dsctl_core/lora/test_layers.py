"""LoRA layers against the formula, and against models they do not fit."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dsctl_core.errors import DsctlError
from dsctl_core.family import Denoiser, ModelParts
from dsctl_core.files.safetensors import write_safetensors
from dsctl_core.lora.files import read_lora
from dsctl_core.lora.layers import add_lora, continue_lora, export_lora, fuse_lora, fuse_loras, load_lora, tuner_layers
from dsctl_core.memory.quantize import FORMATS, _pack


class Net(nn.Module):
    """Two blocks of two linear layers, in any dtype."""

    def __init__(self, width=6):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"to_q": nn.Linear(4, width), "to_k": nn.Linear(4, width)}) for _ in "ab"
        )

    def forward(self, x):
        return sum(layer(x) for block in self.blocks for layer in block.values())


class Pipe:
    """As much of a pipeline as loading a LoRA needs."""

    parts = ModelParts((), (Denoiser("dit"),), 1)
    family = SimpleNamespace(name="net", same_layers_as=(), original_names=None)

    def __init__(self, **components):
        self.components = components

    def component(self, name):
        return self.components[name]


@pytest.fixture
def x():
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def net(seed=0, **kwargs):
    torch.manual_seed(seed)
    return Net(**kwargs).requires_grad_(False)


def write_lora(path, *, layers=("blocks.0.to_q", "blocks.1.to_k"), rank=2, width=6, prefix="diffusion_model.", **extra):
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in layers:
        tensors[f"{prefix}{layer}.lora_A.weight"] = torch.randn(rank, 4, generator=generator)
        tensors[f"{prefix}{layer}.lora_B.weight"] = torch.randn(width, rank, generator=generator)
    write_safetensors(path, {**tensors, **extra}, {"rank": str(rank)})
    return tensors


def test_a_new_lora_changes_nothing_and_is_the_only_thing_that_trains(x):
    base, model = net(), net()
    add_lora(model, ["to_q"], rank=2)
    assert torch.equal(model(x), base(x))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 4 and all(".to_q.lora_" in name for name in trained)


def test_a_lora_is_float32_on_a_16_bit_model():
    model = net().bfloat16()
    add_lora(model, ["to_q"], rank=2)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_the_start_depends_on_the_seed_alone():
    first, second, other = net(), net(), net()
    add_lora(first, ["to_q"], rank=2, seed=3)
    torch.randn(5)
    add_lora(second, ["to_q"], rank=2, seed=3)
    add_lora(other, ["to_q"], rank=2, seed=4)
    a, b, c = (next(iter(tuner_layers(m).values())).lora_A["default"].weight for m in (first, second, other))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_adding_a_lora_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.randn(1)
    torch.manual_seed(7)
    model = Net.__new__(Net)
    with torch.random.fork_rng():
        model = net()
    add_lora(model, ["to_q"], rank=2)
    assert torch.equal(torch.randn(1), expected)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, -1.0])
def test_a_loaded_lora_adds_scale_times_b_a(tmp_path, x, scale):
    tensors = write_lora(tmp_path / "l.safetensors")
    base, model = net(), net()
    load_lora(Pipe(dit=model), tmp_path / "l.safetensors", scale)
    expected = base(x)
    for layer in ("blocks.0.to_q", "blocks.1.to_k"):
        down = tensors[f"diffusion_model.{layer}.lora_A.weight"]
        expected = expected + scale * x @ down.T @ tensors[f"diffusion_model.{layer}.lora_B.weight"].T
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


def test_scale_zero_is_the_base_exactly(tmp_path, x):
    write_lora(tmp_path / "l.safetensors")
    base, model = net(), net()
    load_lora(Pipe(dit=model), tmp_path / "l.safetensors", 0.0)
    assert torch.equal(model(x), base(x))


def test_two_loras_add_up_and_need_not_cover_the_same_layers(tmp_path, x):
    write_lora(tmp_path / "a.safetensors")
    write_lora(tmp_path / "b.safetensors", layers=("blocks.1.to_k", "blocks.1.to_q"), rank=3)
    base, both, only_a, only_b = net(), net(), net(), net()
    load_lora(Pipe(dit=both), tmp_path / "a.safetensors", 0.8)
    load_lora(Pipe(dit=both), tmp_path / "b.safetensors", 0.5)
    load_lora(Pipe(dit=only_a), tmp_path / "a.safetensors", 0.8)
    load_lora(Pipe(dit=only_b), tmp_path / "b.safetensors", 0.5)
    torch.testing.assert_close(both(x) - base(x), only_a(x) + only_b(x) - 2 * base(x), atol=1e-5, rtol=1e-5)


def test_fusing_equals_loading(tmp_path, x):
    write_lora(tmp_path / "l.safetensors")
    loaded, fused = net(), net()
    load_lora(Pipe(dit=loaded), tmp_path / "l.safetensors", 0.7)
    fuse_lora(Pipe(dit=fused), tmp_path / "l.safetensors", "dit", 0.7)
    torch.testing.assert_close(fused(x), loaded(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("alpha", [None, 2, 1, 8])
def test_an_exported_lora_loads_to_the_same_output_whatever_alpha_is(tmp_path, x, alpha):
    model = net()
    add_lora(model, ["to_q", "to_k"], rank=2, alpha=alpha)
    for layer in tuner_layers(model).values():
        nn.init.normal_(layer.lora_B["default"].weight)
    write_safetensors(tmp_path / "l.safetensors", export_lora(model, "dit"), {})
    again, continued = net(), net()
    load_lora(Pipe(dit=again), tmp_path / "l.safetensors")
    torch.testing.assert_close(again(x), model(x), atol=1e-5, rtol=1e-5)
    add_lora(continued, ["to_q", "to_k"], rank=2, alpha=alpha)
    continue_lora(continued, "dit", tmp_path / "l.safetensors")
    torch.testing.assert_close(continued(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "transformer.", "base_model.model.", "pipe.dit.", ""])
def test_the_prefixes_of_other_tools_are_read(tmp_path, prefix):
    write_lora(tmp_path / "l.safetensors", prefix=prefix)
    assert set(read_lora(tmp_path / "l.safetensors").components["dit"]) == {"blocks.0.to_q", "blocks.1.to_k"}


def test_alpha_in_the_file_scales_the_update(tmp_path, x):
    write_lora(tmp_path / "a.safetensors", layers=("blocks.0.to_q",))
    alpha = {"diffusion_model.blocks.0.to_q.alpha": torch.tensor(1.0)}
    write_lora(tmp_path / "b.safetensors", layers=("blocks.0.to_q",), **alpha)
    whole, half = net(), net()
    load_lora(Pipe(dit=whole), tmp_path / "a.safetensors", 0.5)
    load_lora(Pipe(dit=half), tmp_path / "b.safetensors", 1.0)
    torch.testing.assert_close(half(x), whole(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ("other.0.to_q",)}, "another model"),
        ({"width": 8}, "6x4 here and 8x4"),
        ({"stranger": torch.ones(1)}, "'stranger' is not a LoRA matrix"),
        ({"prefix": "vae."}, "another model"),
    ],
)
def test_a_lora_that_does_not_fit_is_refused_by_name(tmp_path, change, message):
    write_lora(tmp_path / "l.safetensors", **change)
    with pytest.raises(DsctlError, match=message) as caught:
        load_lora(Pipe(dit=net()), tmp_path / "l.safetensors")
    assert "l.safetensors" in caught.value.problem and caught.value.hint


def test_half_a_layer_is_refused(tmp_path):
    write_safetensors(tmp_path / "l.safetensors", {"blocks.0.to_q.lora_A.weight": torch.ones(2, 4)}, {})
    with pytest.raises(DsctlError, match="only one of the two matrices"):
        read_lora(tmp_path / "l.safetensors")


def test_one_misspelt_target_among_several_is_an_error_with_the_near_miss():
    with pytest.raises(DsctlError, match="'to_qq' matches no linear layer") as caught:
        add_lora(net(), ["to_k", "to_qq"], rank=2)
    assert "to_q" in (caught.value.hint or "")


def test_continuing_at_another_rank_or_on_other_layers_is_refused(tmp_path):
    write_lora(tmp_path / "l.safetensors", layers=("blocks.0.to_q", "blocks.1.to_q"))
    model = net()
    add_lora(model, ["to_q"], rank=4)
    with pytest.raises(DsctlError, match="has rank 2, but this run trains rank 4"):
        continue_lora(model, "dit", tmp_path / "l.safetensors")
    model = net()
    add_lora(model, ["to_k"], rank=2)
    with pytest.raises(DsctlError, match="does not cover"):
        continue_lora(model, "dit", tmp_path / "l.safetensors")


def test_fused_loras_and_doras_compute_what_attached_ones_do_without_a_layer_more(tmp_path, x):
    files = []
    for number, extra in enumerate(({}, {"diffusion_model.blocks.0.to_q.dora_scale": torch.rand(6, 1) + 0.5})):
        files.append((tmp_path / f"{number}.safetensors", 0.7 - number))
        layers = ("blocks.0.to_q",) if extra else ("blocks.0.to_q", "blocks.1.to_k")
        write_lora(files[-1][0], layers=layers, **extra)
    attached, fused, both = (Pipe(dit=net()) for _ in range(3))
    for path, scale in files:
        load_lora(attached, path, scale)
    fuse_loras(fused, files)
    fuse_loras(both, files, ["dit"])
    torch.testing.assert_close(fused.components["dit"](x), attached.components["dit"](x), atol=1e-6, rtol=0)
    assert torch.equal(both.components["dit"](x), attached.components["dit"](x))
    assert [type(layer) for layer in fused.components["dit"].blocks[0].values()] == [nn.Linear] * 2
    assert float((fused.components["dit"](x) - net()(x)).abs().max()) > 0.1


def test_a_lora_on_packed_weights_is_attached_and_leaves_them(tmp_path, x):
    write_lora(tmp_path / "lora.safetensors")
    model = net()
    for block in model.blocks:
        for layer in block.values():
            _pack(layer, FORMATS["int8"], torch.float32, torch.device("cpu"))
    packed = model.blocks[0]["to_q"].weight.clone()
    plain = model(x)
    fuse_loras(Pipe(dit=model), [(tmp_path / "lora.safetensors", 1.0)])
    assert torch.equal(model.blocks[0]["to_q"].base_layer.weight, packed)
    assert float((model(x) - plain).abs().max()) > 0.1
