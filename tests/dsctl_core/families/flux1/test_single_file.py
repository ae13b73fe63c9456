"""FLUX.1's components from single files: in diffusers' names, and in the original ones with fused layers."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsctl_core.checkpoint.build import component_class
from dsctl_core.checkpoint.load import load_components
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.families import load_family
from dsctl_core.families.flux1.family import FAMILY, FILL_CONFIG
from dsctl_core.families.flux1.original_names import ORIGINAL_NAMES
from dsctl_core.families.resolve import resolve_model
from dsctl_core.family import Family
from tests.dsctl_core.families.flux1.conftest import Pair
from tests.dsctl_core.families.z_image.test_single_file import original_vae
from tests.tiny_models import write_tiny_model

TINY = {name: FAMILY.tiny[name] for name in ("dit", "vae")}
KINDS = {
    "dev": TINY["dit"],
    "schnell": {**TINY["dit"], "guidance_embeds": False},
    "fill": {**TINY["dit"], "in_channels": FILL_CONFIG["in_channels"], "out_channels": 64},
}


def original_dit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the transformer's tensors as the original files have them."""
    rest = dict(state)
    made: dict[str, Tensor] = {}
    for part in ("weight", "bias"):
        for original, ours in (*ORIGINAL_NAMES.fused.items(), *((o, (p,)) for o, p in ORIGINAL_NAMES.single.items())):
            for number in range(38):
                names = [f"{each.replace('{}', str(number))}.{part}" for each in ours]
                if names[0] in rest:
                    tensor = torch.cat([rest.pop(name) for name in names])
                    halves = tensor.chunk(2) if original == "final_layer.adaLN_modulation.1" else (tensor,)
                    made[f"{original.replace('{}', str(number))}.{part}"] = torch.cat(tuple(reversed(halves)))
    for name, tensor in rest.items():
        found = re.fullmatch(r"(single_)?transformer_blocks\.(\d+)\.attn\.norm_(added_)?([qk])\.weight", name)
        assert found, name
        stream = "" if found[1] else ("txt_attn." if found[3] else "img_attn.")
        block = f"{'single' if found[1] else 'double'}_blocks.{found[2]}"
        made[f"{block}.{stream}norm.{ {'q': 'query', 'k': 'key'}[found[4]] }_norm.scale"] = tensor
    return made


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> Family:
    """The family as if its tiny sizes were the published ones, also for diffusers, which has the width as a number."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    entry: dict[str, Any] = SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
    convert = entry["checkpoint_mapping_fn"]
    width = TINY["dit"]["num_attention_heads"] * TINY["dit"]["attention_head_dim"]
    assert 3072 in convert.__code__.co_consts
    constants = tuple(width if each == 3072 else each for each in convert.__code__.co_consts)
    narrow = types.FunctionType(convert.__code__.replace(co_consts=constants), convert.__globals__)
    monkeypatch.setitem(entry, "checkpoint_mapping_fn", narrow)
    variants = {name: {"dit": config} for name, config in KINDS.items() if name != "dev"}
    return dataclasses.replace(FAMILY, published=TINY, variants=variants)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "prefix"), [("dev", "model.diffusion_model."), *((kind, "") for kind in KINDS)])
def test_a_transformer_in_one_file_is_the_one_of_the_folder_to_the_dtype_and_says_what_it_is(
    pairs: dict[str, Pair], family: Family, tmp_path: Path, kind: str, prefix: str, dtype: torch.dtype
) -> None:
    folder = pairs[kind].folder
    original = original_dit(load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors"))
    save_file({f"{prefix}{name}": each for name, each in original.items()}, tmp_path / "a.safetensors")
    found = [
        load_components(family, [ModelConfig(path)], torch_dtype=dtype, device="cpu", only=["dit"])
        for path in (folder, tmp_path / "a.safetensors")
    ]
    whole, single = (each.models["dit"].state_dict() for each in found)
    assert single.keys() == whole.keys()
    assert all(torch.equal(single[name], whole[name]) for name in whole)
    assert {name: each.dtype for name, each in single.items()} == {name: each.dtype for name, each in whole.items()}
    assert found[1].parts.kind == found[0].parts.kind == {"schnell": "schnell", "fill": "fill"}.get(kind, "guided")


@pytest.mark.parametrize("original", [False, True])
def test_a_vae_in_one_file_is_the_one_of_the_folder(dev: Pair, family: Family, tmp_path: Path, original: bool) -> None:
    stored = load_file(dev.folder / "vae" / "diffusion_pytorch_model.safetensors")
    save_file(original_vae(stored) if original else stored, tmp_path / "ae.safetensors")
    states = [
        load_components(family, [ModelConfig(path)], torch_dtype=torch.bfloat16, device="cpu", only=["vae"])
        for path in (dev.folder, tmp_path / "ae.safetensors")
    ]
    whole, single = (each.models["vae"].state_dict() for each in states)
    assert single.keys() == whole.keys()
    assert all(torch.equal(single[name], whole[name]) for name in whole)


@pytest.mark.parametrize(("name", "single"), [("flux1", False), ("z-image", False), ("z-image", True)])
def test_the_vae_that_two_families_share_says_nothing_of_the_family(tmp_path: Path, name: str, single: bool) -> None:
    folder = write_tiny_model(name, tmp_path / "model")
    paths = [folder / part / "diffusion_pytorch_model.safetensors" for part in ("vae", "transformer")]
    (folder / "model_index.json").unlink()
    if single:
        paths = [path.rename(tmp_path / f"{path.parent.name}.safetensors") for path in paths]
    assert resolve_model(model_paths=json.dumps([str(path) for path in paths])).family.name == name


@pytest.mark.parametrize(("variant", "count"), [(None, 780), ("schnell", 776), ("fill", 780)])
def test_diffusers_converts_a_file_with_the_published_sizes(variant: str | None, count: int) -> None:
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    family = load_family("flux1")
    with torch.device("meta"):
        state = component_class(family.component("dit"))(**family.sizes("dit", variant)).state_dict()
        original = original_dit(state)
        assert len(original) == count
        found = convert_flux_transformer_checkpoint_to_diffusers(original)
    assert {name: each.shape for name, each in found.items()} == {name: each.shape for name, each in state.items()}


@pytest.mark.parametrize("kept", ["shared.weight", "encoder.embed_tokens.weight"])
def test_the_embeddings_of_t5_are_in_a_file_under_either_name(dev: Pair, tmp_path: Path, kept: str) -> None:
    folder = shutil.copytree(dev.folder, tmp_path / "model")
    file = folder / "text_encoder_2" / "model.safetensors"
    state = load_file(file)
    embeddings = state.pop("shared.weight")
    save_file({**state, kept: embeddings}, file, {"format": "pt"})
    found = load_components(
        FAMILY, [ModelConfig(folder)], torch_dtype=torch.float32, device="cpu", only=["text_encoder_2"]
    )
    assert torch.equal(found.models["text_encoder_2"].encoder.embed_tokens.weight, embeddings)


def test_the_names_of_clip_are_those_of_the_published_file_or_of_the_library(dev: Pair, tmp_path: Path) -> None:
    folder = shutil.copytree(dev.folder, tmp_path / "model")
    file = folder / "text_encoder" / "model.safetensors"
    state = load_file(file)
    assert not any(name.startswith("text_model.") for name in state)
    save_file({f"text_model.{name}": each for name, each in state.items()}, file, {"format": "pt"})
    configs, only = [ModelConfig(folder)], ["text_encoder"]
    found = load_components(FAMILY, configs, torch_dtype=torch.float32, device="cpu", only=only).models
    loaded = found["text_encoder"].state_dict()
    assert len(loaded) == len(state) == 36
    assert all(torch.equal(loaded[name], state[name]) for name in state)
