"""A LoKr and a LoHa of every family are the same in every format, for dsctl, for diffusers, and on fused layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dsctl_core.errors import DsctlError
from dsctl_core.families import load_family
from dsctl_core.lora import FORMATS, LokrLayer, load_lora, save_lora
from dsctl_core.lora.layers import linear_shapes
from dsctl_core.lora.original import from_original, to_original
from tests.contract import loras
from tests.tiny_models import BUILDERS, write_tiny_model

NAMES = sorted(BUILDERS)
FORMS = [name for name, form in FORMATS.items() if form.products]
# Families whose original release has one layer for several of diffusers', where a LoKr has no name for three.
FUSED = {name for name in NAMES if (table := load_family(name).original_names) is not None and table.fused}
# Families whose LoKr files diffusers reads, by format.
READ_BY_DIFFUSERS = [("flux2", "diffusers"), ("flux2", "lycoris"), ("z-image", "diffusers")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_tiny_model(name, root / name) for name in NAMES}


@pytest.fixture(scope="module")
def made(folders: dict[str, Path]) -> dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any], Any]]:
    """By family and network: the layers, the weights of the model with them, and the shapes of its layers."""
    found = {}
    for name, folder in folders.items():
        dit = loras.fresh(name, folder).dit
        for network, layers in loras.made_products(name, dit).items():
            found[name, network] = (layers, loras.updated_weights(dit, layers), linear_shapes(dit))
    return found


def write(path: Path, name: str, form: str, layers: Any, shapes: Any) -> Path:
    original = load_family(name).original_names
    return save_lora(path, {"dit": layers}, {}, form=form, shapes={"dit": shapes}, original=original)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("network", ["lokr", "loha"])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_read_and_fused_gives_the_weights_with_the_updates(
    folders: Any, made: Any, tmp_path: Path, name: str, network: str, form: str
) -> None:
    layers, expected, shapes = made[name, network]
    path = tmp_path / "l.safetensors"
    if network == "lokr" and name in FUSED and FORMATS[form].original:
        with pytest.raises(DsctlError, match="their updates together are no LoKr"):
            write(path, name, form, layers, shapes)
        assert not list(tmp_path.iterdir())
        return
    write(path, name, form, layers, shapes)
    loras.assert_same(loras.fused_weights(name, folders[name], path), expected)


@pytest.mark.parametrize(("name", "form"), READ_BY_DIFFUSERS)
def test_diffusers_reads_a_lokr_and_gives_the_weights_with_the_updates(
    folders: Any, made: Any, tmp_path: Path, name: str, form: str
) -> None:
    layers, _, shapes = made[name, "lokr"]
    low = {n: each for n, each in layers.items() if len(each.first) == 1}  # w1 is low-rank everywhere, or nowhere
    expected = loras.updated_weights(loras.fresh(name, folders[name]).dit, low)
    path = write(tmp_path / "l.safetensors", name, form, low, shapes)
    loras.assert_same(loras.fused_by_diffusers(folders[name], path), expected)


@pytest.mark.parametrize("sides", [(2, 2), (3, 2), (6, 1)])
@pytest.mark.parametrize("name", sorted(FUSED))
def test_a_lokr_on_a_fused_layer_of_another_trainer_is_that_of_its_rows(
    folders: Any, tmp_path: Path, name: str, sides: tuple[int, int]
) -> None:
    table = load_family(name).original_names
    assert table is not None
    dit = loras.fresh(name, folders[name]).dit
    shapes = linear_shapes(dit)
    generator = torch.Generator().manual_seed(3)
    before = dit.state_dict()
    tensors, expected = {}, {key: tensor.detach().clone() for key, tensor in before.items()}
    for original, parts in table.fused.items():
        ours = [part.replace("{}", "0") for part in parts]
        if not shapes.keys() >= set(ours):
            continue
        rows, columns = sum(shapes[part][0] for part in ours), shapes[ours[0]][1]
        a, b = sides[0] if rows % sides[0] == 0 else 4, sides[1]
        first = torch.randn(a, b, generator=generator)
        second = torch.randn(rows // a, columns // b, generator=generator)
        key = f"diffusion_model.{original.replace('{}', '0')}"
        tensors |= {f"{key}.lokr_w1": first, f"{key}.lokr_w2": second, f"{key}.alpha": torch.tensor(9999999999.0)}
        for part, update in zip(ours, torch.kron(first, second).split([shapes[p][0] for p in ours]), strict=True):
            expected[f"{part}.weight"] += update
    save_file(tensors, tmp_path / "l.safetensors")
    loras.assert_same(loras.fused_weights(name, folders[name], tmp_path / "l.safetensors"), expected)
    applied, plain = loras.fresh(name, folders[name]), loras.fresh(name, folders[name]).dit
    load_lora(applied, tmp_path / "l.safetensors")
    plain.load_state_dict(expected)
    linear = dict(plain.named_modules())
    changed = [key.removesuffix(".weight") for key, tensor in expected.items() if not torch.equal(tensor, before[key])]
    assert len(changed) >= 3
    for part in changed:
        x = torch.randn(2, shapes[part][1], generator=generator)
        torch.testing.assert_close(applied.dit.get_submodule(part)(x), linear[part](x), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("network", ["lokr", "loha"])
@pytest.mark.parametrize("name", [name for name in NAMES if load_family(name).original_names is not None])
def test_original_names_and_swapped_halves_come_back(made: Any, name: str, network: str) -> None:
    table = load_family(name).original_names
    assert table is not None
    layers, _, shapes = made[name, network]
    fused = {part for parts in table.fused.values() for part in parts}
    layers = dict(layers)
    if network == "lokr":
        layers = {n: each for n, each in layers.items() if n.replace(".0.", ".{}.", 1) not in fused}
        layers = {n: each for n, each in layers.items() if n.replace(".1.", ".{}.", 1) not in fused}
    for original, ours in table.single.items():
        if original in table.swapped and ours in shapes:
            rows, columns = shapes[ours]
            generator = torch.Generator().manual_seed(1)
            parts = [torch.randn(size, generator=generator) for size in ((2, 1), (rows // 2, columns))]
            layers[ours] = LokrLayer((parts[0],), (parts[1],)) if network == "lokr" else layers.get(ours)
    layers = {n: each for n, each in layers.items() if each is not None}
    back = from_original(to_original(layers, table, "comfyui"), [table], flat=False)
    assert back.keys() == layers.keys() and layers
    for layer, each in layers.items():
        torch.testing.assert_close(back[layer].matrix() * back[layer].scale, each.matrix() * each.scale)
