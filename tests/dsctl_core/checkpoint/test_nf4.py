"""Networks that were published in nf4: read as they are held, trained on with a LoRA, and drawn with."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsctl_core.checkpoint.load import load_components
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.checkpoint.nf4 import stored_formats
from dsctl_core.commands.infer import load
from dsctl_core.commands.train import dry_run, train
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families import load_family
from dsctl_core.families.resolve import resolve_model
from dsctl_core.memory.quantize import BLOCK, QuantizedLinear
from dsctl_core.options import InferOptions
from tests import nf4
from tests.dsctl_core.training.conftest import picture
from tests.dsctl_core.training.test_run import options
from tests.tiny_models import write_tiny_model

FAMILY = load_family("qwen-image")
DIT = Path("transformer/diffusion_pytorch_model.safetensors")
CONFIG = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_compute_dtype": "bfloat16",
}
NESTED = 32  # numbers that share a scale in the second packing, 256 in published files
STATE = ".quant_state.bitsandbytes__nf4"


@pytest.fixture(autouse=True)
def _bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nf4 as the paper defines it where bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        monkeypatch.setattr("dsctl_core.memory.quantize.bitsandbytes", lambda: nf4)
        for module in ("training.plan.stored", "commands.infer_offload", "training.model.open"):
            monkeypatch.setattr(f"dsctl_core.{module}.require_library", lambda _: None)


def packed(tensors: dict[str, Tensor], *, twice: bool = False) -> dict[str, Tensor]:
    """Return the tensors with the linear layers of blocks and two others packed, as bitsandbytes writes them."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        inside = name.startswith("transformer_blocks.") or name in ("img_in.weight", "proj_out.weight")
        if not (inside and name.endswith(".weight") and tensor.dim() == 2):
            found[name] = tensor
            continue
        held, state = nf4.quantize_4bit(tensor, blocksize=BLOCK, quant_type="nf4")
        about: dict[str, Any] = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "bfloat16", "shape": [*tensor.shape]}
        absmax = state.absmax
        if twice:
            offset = float(absmax.mean())
            rest = (absmax - offset).split(NESTED)
            largest = torch.stack([part.abs().max() for part in rest])
            code = torch.linspace(-1, 1, 256)
            scaled = torch.cat([part / top for part, top in zip(rest, largest, strict=True)])
            absmax = (scaled[:, None] - code).abs().argmin(1).to(torch.uint8)
            about |= {"nested_blocksize": NESTED, "nested_offset": offset, "nested_dtype": "float32"}
            found |= {f"{name}.nested_absmax": largest, f"{name}.nested_quant_map": code}
        found |= {name: held, f"{name}.absmax": absmax, f"{name}.quant_map": state.code.clone()}
        found[f"{name}{STATE}"] = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(FAMILY.name, tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A model whose denoiser is in nf4."""
    made = Path(shutil.copytree(whole, tmp_path / "nf4"))
    save_file(packed(load_file(made / DIT)), made / DIT, metadata={"format": "pt"})
    write_config(made, CONFIG)
    return made


def write_config(folder: Path, settings: dict[str, Any]) -> None:
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": settings}))


def change(folder: Path, **tensors: Tensor | None) -> None:
    """Replace tensors of the denoiser by name; None takes one out."""
    found = {**load_file(folder / DIT), **tensors}
    save_file({name: each for name, each in found.items() if each is not None}, folder / DIT)


def dit_of(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load_components(FAMILY, [ModelConfig(path=folder)], torch_dtype=dtype, device="cpu", only=["dit"]).models[
        "dit"
    ]


@pytest.mark.parametrize("twice", [False, True])
def test_packed_layers_stay_packed_and_are_the_weights_that_they_hold(folder: Path, whole: Path, twice: bool) -> None:
    tensors = load_file(whole / DIT)
    if twice:
        change(folder, **packed(tensors, twice=True))
    dit, expected = dit_of(folder), dit_of(whole)
    layers = {name: layer for name, layer in dit.named_modules() if isinstance(layer, QuantizedLinear)}
    assert {"img_in", "proj_out", "transformer_blocks.1.attn.to_q"} <= layers.keys() and len(layers) > 20
    for name, layer in layers.items():
        held, state = nf4.quantize_4bit(tensors[f"{name}.weight"], blocksize=BLOCK, quant_type="nf4")
        exact = nf4.dequantize_4bit(held, state)
        error = float((layer.whole_weight(exact) - exact).norm() / exact.norm())
        assert error < 0.02 if twice else error == 0, name
    assert torch.equal(dit.txt_in.weight, expected.txt_in.weight), "what is not packed is as it was"
    assert dit_of(folder, torch.bfloat16).txt_in.weight.dtype == torch.bfloat16
    assert stored_formats(FAMILY, [ModelConfig(path=folder)]) == {"dit": "nf4"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    picture(seed=1).save(made / "0.png")
    (made / "0.txt").write_text("a fox")
    return made


def test_a_lora_is_trained_on_it_and_drawn_with_beside_it(folder: Path, data: Path, tmp_path: Path) -> None:
    needs = dry_run(options(folder, data, tmp_path / "never", lora_rank=2)).memory
    result = train(options(folder, data, tmp_path / "out", lora_rank=2, max_steps=2))
    assert result.final_loss > 0 and needs.weights > 0
    asked = InferOptions(model=str(folder), prompt="a fox", output=tmp_path / "a.png", lora=[f"{result.checkpoint}"])
    pipe: Any = load(asked, resolve_model(str(folder)), torch.device("cpu"), torch.float32)
    assert any(isinstance(layer, QuantizedLinear) for layer in pipe.dit.modules())
    assert pipe(prompt="a fox", height=32, width=32, num_inference_steps=1, seed=1, cfg_scale=1.0).size == (32, 32)


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"lora_rank": None, "trainable_models": "dit"}, "cannot be trained whole"),
        ({"network": "dora"}, "cannot get a DoRA"),
        ({"quantize": "dit=int8"}, "cannot be packed anew"),
    ],
)
def test_what_needs_whole_weights_is_refused_in_one_line(
    folder: Path, data: Path, tmp_path: Path, more: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UsageError, match=f"the dit is held in nf4 by its files, so it {problem}") as caught:
        train(options(folder, data, tmp_path / "out", **more))
    assert "\n" not in caught.value.problem and caught.value.hint


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({**CONFIG, "bnb_4bit_quant_type": "fp4"}, "quantized with bitsandbytes, which are not read"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "quantized with bitsandbytes, which are not read"),
        ({"quant_method": "torchao", "quant_type": "int8wo"}, "quantized with torchao, which are not read"),
    ],
)
def test_other_formats_are_named_and_not_read(folder: Path, settings: dict[str, Any], problem: str) -> None:
    write_config(folder, settings)
    with pytest.raises(DsctlError, match=problem):
        dit_of(folder)


Q = "transformer_blocks.0.attn.to_q.weight"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({f"{Q}.absmax": None}, "what belongs to .*to_q.weight is missing"),
        ({Q: torch.zeros(3, 1, dtype=torch.uint8)}, "to_q.weight is missing or has another size"),
        ({f"{Q}.absmax": torch.full((16,), float("nan"))}, "absmax has a value that is no finite number"),
        ({f"{Q}{STATE}": torch.full((4000,), 91, dtype=torch.uint8)}, "nf4: it is nested more than 64 levels deep"),
        ({f"{Q}{STATE}": torch.zeros(5)}, "is no description of a packed weight"),
        ({f"{Q}{STATE}": torch.tensor(list(b'{"quant_type": 4}'), dtype=torch.uint8)}, "quant_type"),
        ({"img_in.bias": None}, "lacks img_in.bias"),
        ({"other.weight": torch.zeros(2, 2)}, "has, beyond the model, other.weight"),
        ({"txt_in.bias": torch.zeros(3)}, "misshapes txt_in.bias"),
    ],
)
def test_damaged_files_are_refused_by_name(folder: Path, changes: dict[str, Tensor | None], problem: str) -> None:
    change(folder, **changes)
    with pytest.raises(DsctlError, match=problem):
        dit_of(folder)
