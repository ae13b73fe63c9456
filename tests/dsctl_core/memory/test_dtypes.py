"""Parts of a model stay in float32 in every way of loading, holding and storing it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from transformers import UMT5Config, UMT5EncoderModel

from dsctl_core.checkpoint.load import load_component
from dsctl_core.checkpoint.single_file import load_single_file
from dsctl_core.families import load_family
from dsctl_core.family import Component
from dsctl_core.memory.dtypes import cast_weights, float32_parts
from dsctl_core.memory.quantize import store_in_fp8
from dsctl_core.training.dry_run.fake_tensors import Simulation

SIZES = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 1,
    "rope_max_seq_len": 32,
}
NAME = "WanTransformer3DModel"
DECLARED = Component("dit", "transformer", "diffusers", NAME, float32_parts=("proj_out",))


class OneComponent:
    """As much of a family as loading a single file asks for."""

    @staticmethod
    def all_sizes(component: str) -> list[dict[str, object]]:
        return [SIZES]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    model = WanTransformer3DModel(**SIZES)
    model.save_pretrained(folder / "transformer")
    save_file(model.state_dict(), folder / "alone.safetensors")
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_folder_and_a_single_file_give_the_same_tensors_in_the_same_dtypes(saved: Path, dtype: torch.dtype):
    folder = load_component(DECLARED, saved / "transformer", dtype)
    alone = load_single_file(OneComponent(), DECLARED, saved / "alone.safetensors", dtype)  # type: ignore[arg-type]
    first, second = folder.state_dict(), alone.state_dict()
    assert {n: t.dtype for n, t in first.items()} == {n: t.dtype for n, t in second.items()}
    assert all(first[name].equal(second[name]) for name in first)
    precise = {name for name, tensor in first.items() if tensor.dtype == torch.float32}
    assert {"scale_shift_table", "proj_out.weight", "blocks.0.norm2.weight"} <= precise
    assert "blocks.0.attn1.to_q.weight" not in precise
    # In float32 they have not been rounded on their way.
    exact = WanTransformer3DModel.from_pretrained(saved / "transformer").state_dict()
    assert all(first[name].equal(exact[name]) for name in precise)


def test_a_table_that_is_not_saved_is_what_the_class_computes(saved: Path):
    exact = dict(WanTransformer3DModel(**SIZES).named_buffers())
    alone = load_single_file(OneComponent(), DECLARED, saved / "alone.safetensors", torch.bfloat16)  # type: ignore[arg-type]
    found = dict(alone.named_buffers())
    assert exact
    for name, table in exact.items():
        assert found[name].dtype == table.dtype and found[name].equal(table)


def test_a_partly_trained_model_holds_only_its_precise_and_its_trained_parts_in_float32(saved: Path):
    model = load_component(DECLARED, saved / "transformer", torch.float32)
    model.blocks[0].attn1.requires_grad_(True)
    cast_weights(model, torch.bfloat16, frozen_only=True)
    precise = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    parts = float32_parts(model)
    expected = {n for n, p in model.named_parameters() if p.requires_grad or parts & set(n.split("."))}
    assert precise == expected and "proj_out.weight" in precise and "blocks.0.ffn.net.2.weight" not in precise


def test_parts_in_float32_are_not_stored_in_eight_bits(saved: Path):
    model = load_component(DECLARED, saved / "transformer", torch.bfloat16)
    store_in_fp8(model, torch.bfloat16)
    stored = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float8_e4m3fn}
    assert "blocks.0.attn1.to_q.weight" in stored
    parts = float32_parts(model) | {"patch_embedding", "condition_embedder"}
    assert not [name for name in stored if parts & set(name.split("."))]


def test_the_dry_run_counts_them_in_float32(saved: Path):
    loaded = load_component(DECLARED, saved / "transformer", torch.bfloat16)
    dtypes = {name: tensor.dtype for name, tensor in loaded.state_dict().items()}
    model = load_component(DECLARED, saved / "transformer", torch.float32)
    taken = Simulation().take(model, torch.bfloat16)
    assert {name: tensor.dtype for name, tensor in taken.state_dict().items()} == dtypes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_text_encoder_has_the_dtypes_that_transformers_gives_it_in_every_way(tmp_path: Path, dtype: torch.dtype):
    encoder = load_family("wan").component("text_encoder")
    sizes = {"vocab_size": 8, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    UMT5EncoderModel(UMT5Config(**sizes)).save_pretrained(tmp_path)
    expected = {n: p.dtype for n, p in UMT5EncoderModel.from_pretrained(tmp_path, dtype=dtype).named_parameters()}
    wide = [name for name, kind in expected.items() if kind == torch.float32]
    assert [".wo." in name for name in wide] == [True] * (dtype == torch.float16), "which overflow in float16 alone"
    made = [load_component(encoder, tmp_path, torch.float32) for _ in range(2)]
    ways = [cast_weights(made[0], dtype), Simulation().take(made[1], dtype), load_component(encoder, tmp_path, dtype)]
    assert [{n: p.dtype for n, p in model.named_parameters()} for model in ways] == [expected] * len(ways)


def test_a_family_that_declares_nothing_keeps_the_class_that_diffusers_has():
    component = load_family("qwen-image").component("dit")
    assert component.float32_parts == ()
