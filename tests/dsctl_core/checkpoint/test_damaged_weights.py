"""Weights and configs that cannot be used are refused where they are loaded: by file, and by field or tensor."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsctl_core.checkpoint.finite import find_not_finite
from dsctl_core.checkpoint.identify import weight_files
from dsctl_core.checkpoint.load import load_components
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.checkpoint.weight_set import find_weights
from dsctl_core.errors import DsctlError
from dsctl_core.families import find_preset, load_family
from tests.cases import try_each

DIT = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(find_preset("tiny")[1].local_path(), tmp_path / "m")
    return tmp_path / "m"


def load(folder, component, dtype=torch.float32):
    family = load_family("qwen-image")
    settings = {"torch_dtype": dtype, "device": "cpu", "only": [component]}
    return load_components(family, [ModelConfig(path=folder)], **settings).models[component]


def change(file, name, value):
    tensors = load_file(file)
    tensors[name] = value(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})


def with_value(number):
    def put(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[-1] = number
        return tensor

    return put


def first(file):
    return min(name for name, tensor in load_file(file).items() if tensor.ndim >= 2)


@pytest.mark.parametrize(("component", "file"), [("dit", DIT), ("vae", VAE), ("text_encoder", TEXT)])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named_with_its_file(folder, component, file, number):
    name = first(folder / file)
    change(folder / file, name, with_value(number))
    with pytest.raises(DsctlError, match="has a value that is no finite number in float32") as caught:
        load(folder, component)
    assert str(folder / file) in caught.value.problem
    assert name in caught.value.problem


def test_a_weight_beyond_the_dtype_of_the_run_is_named_and_large_sums_are_no_fault(folder):
    name = first(folder / DIT)
    change(folder / DIT, name, with_value(1e6))
    load(folder, "dit")
    with pytest.raises(DsctlError, match=f"{name} has a value that is no finite number in float16"):
        load(folder, "dit", torch.float16)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        largest = torch.full((8, 8), torch.finfo(dtype).max, dtype=dtype)
        assert find_not_finite([("a", largest), ("b", torch.zeros(0)), ("c", torch.ones(2, dtype=torch.int64))]) is None
        largest[3, 3] = float("nan")
        assert find_not_finite([("o", torch.ones(3)), ("a", largest)]) == "a"


def test_whole_numbers_as_weights_are_refused(folder):
    name = first(folder / DIT)
    change(folder / DIT, name, lambda tensor: tensor.to(torch.int64))
    with pytest.raises(DsctlError, match=rf"{name} has whole numbers \(I64\), and is a weight"):
        load(folder, "dit")


BAD_CONFIGS = [
    (
        "transformer",
        {"num_layers": "two"},
        r"transformer/config\.json: num_layers is the text 'two', not a whole number",
    ),
    ("transformer", {"num_layers": None}, "num_layers is null, not a whole number"),
    ("transformer", {"num_layers": 10**9}, r"many times larger than its \d+ weights .* num_layers = 1000000000"),
    ("transformer", {"num_attention_heads": 10**9}, "many times larger than its"),
    ("transformer", {"axes_dims_rope": [10**9] * 3}, "axes_dims_rope = 1000000000"),
    ("transformer", {"guidance_embeds": "no"}, "guidance_embeds is the text 'no', not true or false"),
    ("transformer", {"axes_dims_rope": 3}, "axes_dims_rope is the number 3, not a list"),
    ("transformer", {"axes_dims_rope": ["a"]}, "does not fit a QwenImageTransformer2DModel"),
    ("vae", {"z_dim": 1e300}, "vae does not fit"),
    ("vae", {"latents_std": [0.0] * 16}, r"vae/config\.json: latents_std has 0, by which latents are divided"),
    ("vae", {"latents_std": ["1"] * 16}, "latents_std has the text '1', not a number"),
    ("vae", {"num_res_blocks": 10**9}, "num_res_blocks = 1000000000"),
    ("text_encoder", {"text_config": {"num_hidden_layers": 10**9}}, r"text_config\.num_hidden_layers = 1000000000"),
    ("text_encoder", {"text_config": {"num_hidden_layers": 10**9, "layer_types": None}}, "many times larger than its"),
    ("text_encoder", {"text_config": {"intermediate_size": 10**9}}, "many times larger than its"),
    ("text_encoder", {"text_config": {"num_hidden_layers": "two"}}, "text_encoder does not fit a Qwen2_5_VL"),
    ("text_encoder", {"text_config": []}, "text_encoder does not fit a Qwen2_5_VL"),
    (
        "vae",
        {"quantization_config": {"quant_method": "gptq"}},
        r"vae/config\.json has a quantization_config: .* gptq",
    ),
    ("transformer", {"quantization_config": {"load_in_4bit": True, "load_in_8bit": True}}, "with bitsandbytes"),
    ("vae", {"quantization_config": {"quant_method": "torchao"}}, "vae has no packed weight, .* has them in torchao"),
    ("transformer", {"quantization_config": {"load_in_4bit": True}}, "no packed weight, .* has them in fp4"),
]


@pytest.mark.parametrize(("part", "values", "message"), BAD_CONFIGS, ids=[str(row[1])[:40] for row in BAD_CONFIGS])
def test_a_config_of_wrong_types_or_absurd_sizes_is_refused_at_once(folder, part, values, message):
    file = folder / part / "config.json"
    config = json.loads(file.read_text())
    for name, value in values.items():
        config[name] = {**config.get(name, {}), **value} if isinstance(value, dict) else value
    file.write_text(json.dumps(config))
    began = time.monotonic()
    with pytest.raises(DsctlError, match=message) as caught:
        load(folder, "dit" if part == "transformer" else part)
    assert time.monotonic() - began < 20
    assert "\n" not in caught.value.problem


def test_deep_nesting_in_a_config_is_refused(folder):
    file = folder / "transformer" / "config.json"
    file.write_text(f'{{"a": {"[" * 100_000}')
    with pytest.raises(DsctlError, match=r"config\.json: it is nested more than 64 levels deep"):
        load(folder, "dit")


QUANTIZED = {
    "blocks.0.scale_weight": "scaled fp8",
    "scaled_fp8": "scaled fp8",
    "blocks.0.attn.to_q.weight_scale": "scaled fp8",
    "blocks.0.to_q.weight.absmax": r"bitsandbytes \(4 bits",
    "blocks.0.to_q.weight.quant_map": r"bitsandbytes \(4 bits",
    "blocks.0.to_q.weight.quant_state.bitsandbytes__nf4": r"bitsandbytes \(4 bits",
    "blocks.0.to_q.SCB": r"bitsandbytes \(8 bits",
    "blocks.0.to_q.qweight": "GPTQ, AWQ",
    "blocks.0.to_q.weight._data": "optimum-quanto",
    "blocks.0.to_q._weight_qdata": "torchao",
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_weights_are_named_in_a_folder_and_as_a_single_file(folder, tmp_path, name):
    file = folder / DIT
    save_file({**load_file(file), name: torch.ones(1)}, file, metadata={"format": "pt"})
    single = ModelConfig(path=shutil.copy(file, tmp_path / "single.safetensors"))
    for config in [ModelConfig(path=folder), *([] if name == "scaled_fp8" else [single])]:  # a single one is read
        with pytest.raises(DsctlError, match=QUANTIZED[name]) as caught:
            load_components(load_family("qwen-image"), [config], torch_dtype=torch.float32, device="cpu", only=["dit"])
        assert "bf16, fp16 or fp32" in str(caught.value.hint)


def test_no_name_of_a_published_network_counts_as_quantized(folder):
    assert all(weight_files(folder / part) for part in ("transformer", "vae", "text_encoder"))


def rename(folder, variant, *, shards=False):
    """Give the weights of every component a variant in their names, in one file or in two shards."""
    for part in ("transformer", "vae", "text_encoder"):
        (file,) = (folder / part).glob("*.safetensors")
        if not shards:
            file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))
            continue
        tensors = load_file(file)
        names = sorted(tensors)
        places = {name: f"{file.stem}.{variant}-0000{1 + (n % 2)}-of-00002.safetensors" for n, name in enumerate(names)}
        for place in set(places.values()):
            own = {name: tensors[name] for name in names if places[name] == place}
            save_file(own, folder / part / place, metadata={"format": "pt"})
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        (folder / part / f"{file.name}.index.{variant}.json").write_text(json.dumps(index))
        file.unlink()


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("variant", ["bf16", "fp16"])
def test_a_folder_with_only_a_variant_of_the_weights_is_read_exactly(folder, variant, shards):
    before = {part: load(folder, part).state_dict() for part in ("dit", "vae", "text_encoder")}
    rename(folder, variant, shards=shards)
    assert find_weights(folder / "vae").variant == variant
    for part, expected in before.items():
        found = load(folder, part).state_dict()
        assert found.keys() == expected.keys() != set()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_without_a_variant_come_first_and_several_variants_are_refused(folder):
    plain = folder / VAE
    for variant in ("fp16", "bf16"):
        shutil.copy(plain, plain.with_name(f"{plain.stem}.{variant}.safetensors"))
    assert weight_files(folder / "vae") == [plain]
    plain.unlink()
    with pytest.raises(DsctlError, match="in several variants: bf16, fp16"):
        weight_files(folder / "vae")


def test_an_index_that_leads_out_of_its_folder_is_refused_and_not_missing(tmp_path):
    outside = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1)}, outside)
    (tmp_path / "m").mkdir()

    def check(name):
        index = tmp_path / "m" / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(DsctlError, match="which is outside of"):
            weight_files(tmp_path / "m")

    names = [
        "../x.safetensors",
        "../../../x",
        str(outside),
        "sub/../../x.safetensors",
        "C:\\x",
        "..\\x",
        "",
        "\\\\a\\b",
    ]
    try_each([(name,) for name in names], check, count=8)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": []}, "weight_map is a list, not an object"),
        ({"weight_map": {}}, "weight_map is empty"),
        ({"weight_map": {"a": ["x"]}}, r"weight_map\.a is a list, not text"),
        ({}, "it lacks the field weight_map"),
    ],
)
def test_an_index_of_another_structure_is_named(tmp_path, index, message):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DsctlError, match=message):
        weight_files(Path(tmp_path))
