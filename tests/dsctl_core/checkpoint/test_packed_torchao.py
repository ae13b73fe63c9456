"""Networks that diffusers and transformers have saved with torchao: the weights that torchao says they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from dsctl_core.checkpoint.load import load_component
from dsctl_core.commands.infer import load
from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError
from dsctl_core.families import load_family
from dsctl_core.families.resolve import resolve_model
from dsctl_core.memory.offload import offload_blocks
from dsctl_core.memory.quantize import QuantizedLinear
from dsctl_core.options import InferOptions
from dsctl_core.training.dry_run.fake_tensors import Simulation, tensor_bytes
from dsctl_core.training.dry_run.simulated import SimulatedModel
from tests.dsctl_core.training.conftest import picture
from tests.dsctl_core.training.test_run import options
from tests.tiny_models import write_tiny_model

FAMILY = load_family("qwen-image")
FOLDERS = {"dit": "transformer", "text_encoder": "text_encoder"}
pytestmark = pytest.mark.filterwarnings("ignore")  # of torchao, and of what it imports


def configs() -> dict[str, Any]:
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        PerGroup,
    )

    return {
        "int8": Int8WeightOnlyConfig(),
        "int8, inputs too": Int8DynamicActivationInt8WeightConfig(),
        "float8": Float8WeightOnlyConfig(),
        "int4 in groups": IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(16)),
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(FAMILY.name, tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def pack(whole: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that makes a model with denoiser and text encoder packed, each by its own library."""

    def made(form: str) -> Path:
        import diffusers
        import transformers

        folder = Path(shutil.copytree(whole, tmp_path / "packed"))
        dit: Any = diffusers.QwenImageTransformer2DModel
        encoder: Any = transformers.Qwen2_5_VLForConditionalGeneration
        for library, cls, name, dtype in (
            (diffusers, dit, "transformer", "torch_dtype"),
            (transformers, encoder, "text_encoder", "dtype"),
        ):
            how = {"quantization_config": library.TorchAoConfig(configs()[form]), dtype: torch.float32}
            found = cls.from_pretrained(whole / name, **how)
            shutil.rmtree(folder / name)
            found.save_pretrained(folder / name)
        return folder

    return made


def part(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> Any:
    return load_component(FAMILY.component(name), folder / FOLDERS[name], dtype)


def held_bytes(model: Any) -> int:
    """Return the bytes of the parameters of a model, and of what its packed layers have beside them."""
    beside = [each for layer in packed_layers(model).values() for each in layer.buffers()]
    return tensor_bytes([*model.parameters(), *beside])


def packed_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}


@pytest.mark.parametrize("form", ["int8", "int8, inputs too", "float8", "int4 in groups"])
def test_each_layer_holds_what_torchao_makes_whole(pack: Any, whole: Path, form: str) -> None:
    from torchao.quantization import quantize_

    folder = pack(form)
    shell = SimulatedModel(resolve_model(str(folder)), None)
    fake: Any = shell.pipeline(Simulation(), torch.float32, lambda _: torch.float32)
    for name in FOLDERS:
        ours, theirs = part(folder, name), part(whole, name)
        quantize_(theirs, configs()[form], lambda module, where: isinstance(module, nn.Linear) and where != "lm_head")
        layers = packed_layers(ours)
        assert len(layers) > 14
        for where, layer in layers.items():
            weight: Any = theirs.get_submodule(where).weight
            assert torch.equal(layer.whole_weight(layer.weight), weight.dequantize()), (name, where)
        sizes = list(map(held_bytes, (ours, fake.component(name))))
        assert sizes[0] == sizes[1], "a dry run reckons with it"


def test_it_is_trained_on_and_drawn_with_and_its_blocks_wait(pack: Any, tmp_path: Path) -> None:
    folder, data = pack("float8"), tmp_path / "data"
    data.mkdir()
    picture(seed=1).save(data / "0.png")
    (data / "0.txt").write_text("a fox")
    result = train(options(folder, data, tmp_path / "out", lora_rank=2, max_steps=1))
    asked = InferOptions(model=str(folder), prompt="a fox", output=tmp_path / "a.png", lora=[f"{result.checkpoint}"])
    pictures = []
    for offloaded in (False, True):
        pipe: Any = load(asked, resolve_model(str(folder)), torch.device("cpu"), torch.float32)
        if offloaded:
            offload_blocks(pipe.dit, 2, torch.device("cpu"))
        pictures.append(pipe(prompt="a fox", height=32, width=32, num_inference_steps=1, seed=1, cfg_scale=1.0))
    assert pictures[0].tobytes() == pictures[1].tobytes()


NAME = "transformer_blocks.0.attn.to_q.weight"


def described(**changes: Any) -> Callable[[dict[str, str]], dict[str, str]]:
    """Return a function that changes what the metadata says of a weight."""
    return lambda about: {**about, NAME: json.dumps({**json.loads(about[NAME]), **changes})}


@pytest.mark.parametrize(
    ("changes", "about", "problem"),
    [
        ({}, lambda about: {"format": "pt"}, "has no metadata of torchao for .*weight"),
        ({}, described(_type="Int4Tensor"), "as torchao's Int4Tensor; read are Int8Tensor"),
        ({}, described(_type="Float8Tensor"), "does not fit its parts"),
        ({}, described(_data={}), "does not fit its parts"),
        ({}, described(_type=4), "_type"),
        ({}, described(_tensor_data_names=["qdata"]), "is not what its metadata says"),
        ({}, lambda about: {**about, NAME: "{"}, "is not valid JSON"),
        ({"_weight_scale": torch.full((32, 1), float("nan"))}, None, "_weight_scale has a value that is no finite"),
        ({"_weight_act_pre_scale": torch.ones(32)}, None, "Int8Tensor with scaled inputs"),
        ({"_weight_qdata": torch.zeros(4, 4, dtype=torch.int8)}, None, "to_q"),
    ],
)
def test_what_is_not_read_is_refused_by_name(pack: Any, changes: dict[str, Any], about: Any, problem: str) -> None:
    file = pack("int8") / "transformer" / "diffusion_pytorch_model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = dict(opened.metadata())
    module = NAME.removesuffix(".weight")
    tensors = load_file(file) | {f"{module}.{name}": tensor for name, tensor in changes.items()}
    save_file(tensors, file, metadata=metadata if about is None else about(metadata))
    with pytest.raises(DsctlError, match=problem) as caught:
        part(file.parent.parent, "dit")
    assert "\n" not in caught.value.problem and caught.value.hint


def test_a_pickle_is_never_read(pack: Any) -> None:
    folder = pack("int8") / "transformer"
    for file in folder.glob("*.safetensors"):
        file.unlink()
    torch.save({}, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(DsctlError, match=r"has no \*.safetensors; its diffusion_pytorch_model.bin is a pickle"):
        part(folder.parent, "dit")
