"""DoRA and rsLoRA against their formulas, through training, files and merging."""

import math

import pytest
import torch
from torch import nn

from dsctl_core.errors import DsctlError
from dsctl_core.lora.dora import update_of, with_strength
from dsctl_core.lora.files import read_lora
from dsctl_core.lora.formats import LoraLayer
from dsctl_core.lora.layers import (
    add_lora,
    continue_lora,
    fuse_lora,
    linear_shapes,
    load_lora,
    trained_layers,
    tuner_layers,
)
from dsctl_core.lora.merge import ScaledLora, merge_into_one
from dsctl_core.lora.save import save_lora
from tests.dsctl_core.lora.test_layers import Pipe, net


@pytest.fixture
def x():
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def trained(**kwargs):
    """A model with a LoRA whose every number is away from its start."""
    model = net()
    add_lora(model, ["to_q", "to_k"], rank=2, **kwargs)
    generator = torch.Generator().manual_seed(1)
    for layer in tuner_layers(model).values():
        layer.lora_B["default"].weight.data.normal_(generator=generator)
        for magnitude in layer.lora_magnitude_vector.values():
            magnitude.weight.data *= 1 + 0.3 * torch.rand(6, generator=generator)
    return model


def test_a_new_dora_changes_nothing_and_trains_its_magnitudes(x):
    for base in (net(), net().bfloat16()):
        given = x.to(next(base.parameters()).dtype)
        expected = base(given)
        add_lora(base, ["to_q"], rank=2, use_dora=True)
        assert torch.equal(base(given), expected)
        names = [name for name, p in base.named_parameters() if p.requires_grad]
        assert len(names) == 6 and sum("magnitude" in name for name in names) == 2
        assert {p.dtype for p in base.parameters() if p.requires_grad} == {torch.float32}


def test_a_dora_computes_the_formula(x):
    model, base = trained(alpha=1, use_dora=True), net()
    expected = 0
    for name, layer in trained_layers(model).items():
        linear = base.get_submodule(name)
        turned = linear.weight + 0.5 * layer.up @ layer.down
        weight = layer.magnitude[:, None] * turned / turned.norm(dim=1, keepdim=True)
        expected = expected + x @ weight.T + linear.bias
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["diffusers", "lycoris", "peft"])
@pytest.mark.parametrize(
    "extra", [{"use_dora": True}, {"use_rslora": True, "alpha": 3}, {"alpha": 5, "use_dora": True}]
)
def test_what_was_trained_comes_back_from_its_file_loaded_fused_and_continued(tmp_path, x, form, extra):
    model = trained(**extra)
    path = save_lora(
        tmp_path / "l.safetensors", {"dit": trained_layers(model)}, {}, form=form, shapes={"dit": linear_shapes(net())}
    )
    loaded, fused, continued = net(), net(), net()
    load_lora(Pipe(dit=loaded), path)
    fuse_lora(Pipe(dit=fused), path, "dit")
    add_lora(continued, ["to_q", "to_k"], rank=2, **extra)
    continue_lora(continued, "dit", path)
    for again in (loaded, fused, continued):
        torch.testing.assert_close(again(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["comfyui", "kohya", "diffsynth"])
def test_a_format_that_cannot_hold_a_dora_is_refused_and_writes_nothing(tmp_path, form):
    with pytest.raises(DsctlError, match=f"the format {form} cannot hold a DoRA") as caught:
        save_lora(tmp_path / "l.safetensors", {"dit": trained_layers(trained(use_dora=True))}, {}, form=form)
    assert "diffusers, lycoris, peft" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_the_scale_of_rslora_goes_with_the_root_of_the_rank():
    model = trained(alpha=6, use_rslora=True)
    assert {layer.scale for layer in trained_layers(model).values()} == {6 / math.sqrt(2)}


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, -0.5])
def test_the_strength_of_a_dora_goes_from_the_base_to_what_was_trained(tmp_path, x, strength):
    path = save_lora(tmp_path / "l.safetensors", {"dit": trained_layers(trained(use_dora=True))}, {})
    base, whole, part, fused = net(), net(), net(), net()
    load_lora(Pipe(dit=whole), path)
    load_lora(Pipe(dit=part), path, strength)
    fuse_lora(Pipe(dit=fused), path, "dit", strength)
    expected = base(x) + strength * (whole(x) - base(x))
    torch.testing.assert_close(part(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fused(x), expected, atol=1e-5, rtol=1e-5)


def test_a_dora_of_another_strength_is_a_dora_that_adds_the_same():
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(5, 4, generator=generator)
    parts = [torch.randn(size, generator=generator) for size in ((2, 4), (5, 2))]
    layer = LoraLayer(*parts, 0.7, torch.rand(5, generator=generator) + 0.5)
    for strength in (0.0, 0.4, 1.7):
        same = update_of(weight, with_strength(weight, layer, strength))
        torch.testing.assert_close(same, update_of(weight, layer, strength), atol=1e-5, rtol=1e-5)


def test_a_dora_and_a_lora_on_one_layer_add_up(tmp_path, x):
    first = save_lora(tmp_path / "a.safetensors", {"dit": trained_layers(trained(use_dora=True))}, {})
    second = save_lora(tmp_path / "b.safetensors", {"dit": trained_layers(trained())}, {})
    base, a, b, both = net(), net(), net(), net()
    load_lora(Pipe(dit=a), first)
    load_lora(Pipe(dit=b), second, 0.5)
    load_lora(Pipe(dit=both), first)
    load_lora(Pipe(dit=both), second, 0.5)
    torch.testing.assert_close(both(x) - base(x), a(x) + b(x) - 2 * base(x), atol=1e-5, rtol=1e-5)


def test_a_dora_is_not_merged_into_a_lora(tmp_path):
    path = save_lora(tmp_path / "l.safetensors", {"dit": trained_layers(trained(use_dora=True))}, {})
    with pytest.raises(DsctlError, match="a DoRA cannot be merged into a LoRA"):
        merge_into_one([ScaledLora(read_lora(path), 1.0)], {}, None)


@pytest.mark.parametrize("dora", [True, False])
def test_continuing_as_the_other_kind_is_refused(tmp_path, dora):
    path = save_lora(tmp_path / "l.safetensors", {"dit": trained_layers(trained(use_dora=dora))}, {})
    model = net()
    add_lora(model, ["to_q", "to_k"], rank=2, use_dora=not dora)
    with pytest.raises(DsctlError, match="is a DoRA" if dora else "is a plain LoRA"):
        continue_lora(model, "dit", path)


def test_the_start_of_the_magnitudes_is_the_length_of_the_rows():
    model = nn.Sequential(nn.Linear(3, 5)).bfloat16()
    weight = model[0].weight.data.float()
    add_lora(model, ["0"], rank=1, use_dora=True)
    (layer,) = trained_layers(model).values()
    assert torch.equal(layer.magnitude, weight.norm(dim=1))
