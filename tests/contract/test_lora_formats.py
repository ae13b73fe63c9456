"""A LoRA of every family is the same in every format: for dsctl, for diffusers' readers, and by its names."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsctl_core.commands.lora import convert
from dsctl_core.commands.merge_lora import merge
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families import families, load_family
from dsctl_core.family import Family
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.lora import FORMATS, LoraLayer, load_lora, read_lora, save_lora
from dsctl_core.lora.files import ADAPTER_FILE
from dsctl_core.lora.formats import format_for
from dsctl_core.lora.layers import continue_lora, linear_shapes
from dsctl_core.options.lora_tools import LoraConvertOptions, MergeLoraOptions
from tests.contract import loras
from tests.tiny_models import BUILDERS, write_tiny_model

# Formats that diffusers does not read for a family: it takes lora_down for kohya's names, or wants a prefix.
NOT_READ_BY_DIFFUSERS = {("flux2", "comfyui"), ("flux2", "diffsynth"), ("qwen-image", "peft")}
NOT_READ_BY_DIFFUSERS |= {("qwen-image-edit", "peft"), ("z-image", "comfyui"), ("z-image", "peft")}
NOT_READ_BY_DIFFUSERS |= {("wan", "diffsynth"), ("wan", "peft"), ("qwen-image-layered", "peft")}
# Behind diffusion_model. and lora_unet_ it takes layers of the main blocks alone.
NOT_READ_BY_DIFFUSERS |= {("wan-vace", form) for form in ("comfyui", "kohya", "diffsynth", "peft")}
# Diffusers has the widths of FLUX.1 as numbers: tests/dsctl_core/families/flux1/test_lora.py changes them.
NOT_READ_BY_DIFFUSERS |= {("flux1", "comfyui"), ("flux1", "kohya"), ("flux1", "diffsynth"), ("flux1", "peft")}
# Of files of LyCORIS it reads LoKrs alone: tests/contract/test_lycoris_files.py.
NOT_READ_BY_DIFFUSERS |= {(name, "lycoris") for name in BUILDERS}
# Families of which diffusers converts only whole weights of the published widths, not the layers of a LoRA.
ONLY_WHOLE = {"flux1"}
# How each format writes the layer a.b, in plain text and not by the table under test.
WRITES = {
    "diffusers": "diffusion_model.a.b.lora_A.weight",
    "comfyui": "diffusion_model.a.b.lora_down.weight",
    "kohya": "lora_unet_a_b.lora_down.weight",
    "lycoris": "lycoris_a_b.lora_down.weight",
    "diffsynth": "a.b.lora_A.default.weight",
    "peft": "base_model.model.a.b.lora_A.weight",
}
# Families of whose files diffusers takes original names behind diffusion_model., and its own behind transformer.
BEHIND_TRANSFORMER = {"flux1", "wan", "wan-vace"}
NAMES = sorted(BUILDERS)
CASES = [(name, form) for name in NAMES for form in FORMATS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_tiny_model(name, root / name) for name in NAMES}


@pytest.fixture(scope="module")
def made(folders: dict[str, Path]) -> dict[str, tuple[dict[str, LoraLayer], dict[str, Any], Any]]:
    """By family: the layers of a LoRA, the weights of the model with them, and the shapes of its layers."""
    found = {}
    for name, folder in folders.items():
        dit = loras.fresh(name, folder).dit
        layers = loras.made_layers(name, dit)
        found[name] = (layers, loras.updated_weights(dit, layers), linear_shapes(dit))
    return found


def write(folder: Path, name: str, form: str, layers: Any, shapes: Any = None) -> Path:
    path = folder / ("lora" if FORMATS[form].folder else "lora.safetensors")
    known = None if shapes is None else {"dit": shapes}
    return save_lora(path, {"dit": layers}, {}, form=form, shapes=known, original=load_family(name).original_names)


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / ADAPTER_FILE if path.is_dir() else path)


def test_every_format_and_family_is_there() -> None:
    assert WRITES.keys() == FORMATS.keys()
    assert {"qwen-image", "flux1", "flux2", "wan"} <= set(NAMES) <= set(families())


@pytest.mark.parametrize(("name", "form"), CASES)
def test_a_file_read_and_fused_gives_the_weights_with_the_updates(
    folders: Any, made: Any, tmp_path: Path, name: str, form: str
) -> None:
    layers, expected, shapes = made[name]
    path = write(tmp_path, name, form, layers, shapes)
    assert read_lora(path).format == form
    loras.assert_same(loras.fused_weights(name, folders[name], path), expected)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_diffusers_reads_the_file_and_gives_the_weights_with_the_updates(
    folders: Any, made: Any, tmp_path: Path, name: str, form: str
) -> None:
    layers, expected, shapes = made[name]
    path = write(tmp_path, name, form, layers, shapes)
    file = path / ADAPTER_FILE if path.is_dir() else path
    if (name, form) not in NOT_READ_BY_DIFFUSERS:
        loras.assert_same(loras.fused_by_diffusers(folders[name], file), expected)
        return
    try:
        other = loras.fused_by_diffusers(folders[name], file)
    except (ValueError, RuntimeError, RuntimeWarning, AttributeError, KeyError, IndexError, AssertionError):
        return
    assert any(not torch.equal(other[each], expected[each]) for each in expected), "diffusers reads it: say so above"


@pytest.mark.parametrize(
    ("name", "form"), [(name, form) for name, form in CASES if name not in ONLY_WHOLE or not FORMATS[form].original]
)
def test_a_file_has_the_names_of_the_model_or_those_that_diffusers_converts_to_them(
    made: Any, tmp_path: Path, name: str, form: str
) -> None:
    family, (layers, _, shapes) = load_family(name), made[name]
    keys = set(tensors_of(write(tmp_path, name, form, layers, shapes)))
    written_form = format_for(form, family.original_names)
    if not written_form.original or family.original_names is None:
        written_as = WRITES[form]
        if form == "diffusers" and name in BEHIND_TRANSFORMER:
            written_as = written_as.replace("diffusion_model.", "transformer.")
        flat = written_as.startswith(("lora_unet_", "lycoris_"))
        names = {written_as.replace("a_b" if flat else "a.b", n.replace(".", "_") if flat else n) for n in layers}
        assert names <= keys
        assert names == {key for key in keys if re.search(r"lora_(A|down)", key)}
        return
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    cls = next(c.single_file_as or c.class_name for c in family.components if c.name == "dit")
    convert_weights: Any = SINGLE_FILE_LOADABLE_CLASSES[cls]["checkpoint_mapping_fn"]
    table = family.original_names
    originals = [*table.single, *table.fused]
    numbered = {o.replace("{}", str(n)) for o in originals for n in range(4)}
    dotted = {each.replace(".", "_") if FORMATS[form].flat else each: each for each in numbered}
    written = tensors_of(tmp_path / "lora.safetensors")
    products = {}
    for key, up in written.items():
        if key.endswith(f".{written_form.up}"):
            own = key.removesuffix(f".{written_form.up}")
            scale = written[f"{own}.alpha"] / up.shape[1] if written_form.alpha == "tensor" else 1
            whole = scale * up @ written[f"{own}.{written_form.down}"]
            products[f"{dotted[own.removeprefix('diffusion_model.').removeprefix('lora_unet_')]}.weight"] = whole
    assert products
    converted = convert_weights(checkpoint=products)
    for layer, each in layers.items():
        torch.testing.assert_close(converted[f"{layer}.weight"], each.scale * each.up @ each.down, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if load_family(name).original_names is not None and name not in ONLY_WHOLE]
)
def test_a_wrong_table_of_original_names_is_found_before_anything_is_written(
    made: Any, tmp_path: Path, name: str
) -> None:
    layers, _, shapes = made[name]
    table = load_family(name).original_names
    assert table is not None
    assert table.converted_as is not None
    blocks = [key for key, ours in table.single.items() if "{}" in key and ours.replace("{}", "0") in layers]
    pairs = [
        (a, b)
        for a in blocks
        for b in blocks
        if a < b and shapes[table.single[a].replace("{}", "0")] == shapes[table.single[b].replace("{}", "0")]
    ]
    assert pairs
    for first, second in pairs:
        swapped = {**table.single, first: table.single[second], second: table.single[first]}
        wrong = replace(table, single=swapped)
        with pytest.raises(DsctlError, match="diffusers does not read"):
            save_lora(tmp_path / "l.safetensors", {"dit": layers}, {}, form="kohya", original=wrong)
    assert list(tmp_path.iterdir()) == []


# Published sizes, one preset for each family: nothing is downloaded, the sizes are declared.
PUBLISHED = {
    name: next(preset.name for preset in load_family(name).presets if preset.model_id is not None) for name in NAMES
}


def of_another_tool(folder: Path, family: Family, preset: str, layer_names: tuple[str, ...]) -> Path:
    """A LoRA of a published size without a header, as another tool writes it."""
    from dsctl_core.commands.lora_model import published_shapes

    variant = next(each.variant for each in family.presets if each.name == preset)
    shapes = published_shapes(family.component("dit"), family.sizes("dit", variant))
    tensors = {}
    for name in layer_names:
        rows, columns = shapes[name]
        tensors[f"transformer.{name}.lora_A.weight"] = torch.full((1, columns), 0.25)
        tensors[f"transformer.{name}.lora_B.weight"] = torch.full((rows, 1), 0.5)
    save_file(tensors, folder / "theirs.safetensors")
    return folder / "theirs.safetensors"


SHARED = (
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.0.attn.to_out.0",
    "transformer_blocks.0.attn.to_add_out",
)


@pytest.mark.parametrize("form", ["comfyui", "kohya"])
@pytest.mark.parametrize(
    ("model", "comfyui"),
    [("qwen-image", SHARED), ("flux2-klein-4b", ("double_blocks.0.img_attn.qkv", "double_blocks.0.img_attn.proj"))],
)
def test_layers_that_two_families_share_get_the_names_of_the_model_that_is_named(
    tmp_path: Path, form: str, model: str, comfyui: tuple[str, ...]
) -> None:
    family = next(f for f in families().values() for preset in f.presets if preset.name == model)
    path = of_another_tool(tmp_path, family, model, SHARED)
    written = tmp_path / "out.safetensors"
    convert(LoraConvertOptions(file=path, to=form, model=model, output=written))
    keys = {key.rsplit(".", 1)[0].removesuffix(".lora_down").removesuffix(".lora_up") for key in load_file(written)}
    for name in comfyui:
        wanted = f"lora_unet_{name.replace('.', '_')}" if form == "kohya" else f"diffusion_model.{name}"
        assert wanted in keys
    assert len(keys) == 3
    assert read_safetensors(written)[1]["family"] == family.name


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_layers_that_two_families_share_are_converted_without_a_model_only_if_the_names_are_the_same(
    tmp_path: Path, form: str
) -> None:
    path = of_another_tool(tmp_path, load_family("qwen-image"), "qwen-image", SHARED)
    output = tmp_path / ("out" if FORMATS[form].folder else "out.safetensors")
    options = LoraConvertOptions(file=path, to=form, output=output)
    if not FORMATS[form].original and form != "diffusers":  # in which the prefix of FLUX.1 is another
        convert(options)
        assert len(tensors_of(output)) == (9 if FORMATS[form].alpha == "tensor" else 6)
        return
    with pytest.raises(
        UsageError, match=r"are layers of .*flux2.* and .*qwen-image.*, which have other names"
    ) as caught:
        convert(options)
    assert "--model" in str(caught.value.hint)
    assert not output.exists()


@pytest.mark.parametrize(("name", "form"), CASES)
def test_a_file_without_a_header_is_converted_for_the_model_that_is_named(
    folders: Any, made: Any, tmp_path: Path, name: str, form: str
) -> None:
    layers, expected, _ = made[name]
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "theirs.safetensors"
    save_file(
        {
            f"{layer}.{part}.weight": t
            for layer, e in layers.items()
            for part, t in (("lora_A", e.down), ("lora_B", e.scale * e.up))
        },
        path,
    )
    output = tmp_path / ("out" if FORMATS[form].folder else "out.safetensors")
    convert(LoraConvertOptions(file=path, to=form, model=str(folders[name]), output=output))
    loras.assert_same(loras.fused_weights(name, folders[name], output), expected)
    back = tmp_path / "back.safetensors"
    convert(LoraConvertOptions(file=output, to="diffusers", model=str(folders[name]), output=back))
    loras.assert_same(loras.fused_weights(name, folders[name], back), expected)


def test_a_lora_of_another_model_is_refused_by_the_model_that_is_named(folders: Any, tmp_path: Path) -> None:
    path = of_another_tool(tmp_path, load_family("qwen-image"), "qwen-image", SHARED)
    for model, said in (("flux2-dev", "6144x6144 here"), (str(folders["qwen-image"]), "32x32 here and 3072x3072")):
        with pytest.raises(DsctlError, match=f"is for another model: .*{said}"):
            convert(LoraConvertOptions(file=path, to="kohya", model=model, output=tmp_path / "o.safetensors"))
    save_lora(tmp_path / "ours.safetensors", read_lora(path).components, {"family": "qwen-image"})
    options = MergeLoraOptions(
        lora=(str(tmp_path / "ours.safetensors"),),
        into="lora",
        model="flux2-klein-4b",
        output=tmp_path / "o.safetensors",
    )
    with pytest.raises(DsctlError, match="its header names qwen-image, and this model is flux2"):
        merge(options)
    flux = loras.fresh("flux2", folders["flux2"])
    for use in (load_lora, lambda pipe, file: continue_lora(pipe.dit, "dit", file, family=pipe.family)):
        with pytest.raises(DsctlError, match="its header names qwen-image, and this model is flux2"):
            use(flux, tmp_path / "ours.safetensors")


def test_a_lora_of_no_known_model_is_refused(tmp_path: Path) -> None:
    save_file(
        {"down.0.q.lora_A.weight": torch.ones(1, 4), "down.0.q.lora_B.weight": torch.ones(4, 1)},
        tmp_path / "l.safetensors",
    )
    with pytest.raises(DsctlError, match="is for no model that is known here"):
        convert(LoraConvertOptions(file=tmp_path / "l.safetensors", to="diffusers", output=tmp_path / "o.safetensors"))
