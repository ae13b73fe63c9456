"""Networks that were published in few bits: read as they are held, cached and trained with, and drawn with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsctl_core.cache.reader import CACHED, CachedDataset
from dsctl_core.checkpoint.load import load_components
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.checkpoint.packed import stored_formats
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.infer import load
from dsctl_core.commands.train import dry_run, train
from dsctl_core.errors import DsctlError
from dsctl_core.families import load_family
from dsctl_core.families.resolve import resolve_model
from dsctl_core.memory.quantize import BLOCK, QuantizedLinear
from dsctl_core.options import CacheOptions, InferOptions
from dsctl_core.progress import NoProgress
from dsctl_core.training.dry_run.estimate import Estimate
from dsctl_core.training.dry_run.fake_tensors import Simulation, tensor_bytes
from dsctl_core.training.dry_run.simulated import SimulatedModel
from dsctl_core.training.plan.plan import plan_training
from tests import nf4
from tests.dsctl_core.training.conftest import picture
from tests.dsctl_core.training.test_run import options
from tests.packed_models import CONFIGS, FILES, FORMS, change, pack_component, use_stand_in, write_config
from tests.tiny_models import write_tiny_model

FAMILY = load_family("qwen-image")
DIT = Path(FILES["dit"])
STATE = ".quant_state.bitsandbytes__nf4"


@pytest.fixture(autouse=True)
def _bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    use_stand_in(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(FAMILY.name, tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def pack(whole: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a model with some components packed."""

    def made(form: str, *components: str, twice: bool = False) -> Path:
        folder = Path(shutil.copytree(whole, tmp_path / "packed"))
        for each in components:
            pack_component(folder, each, form, twice=twice)
        return folder

    return made


@pytest.fixture
def data(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    picture(seed=1).save(made / "0.png")
    (made / "0.txt").write_text("a fox")
    return made


def part(folder: Path, name: str = "dit", dtype: torch.dtype = torch.float32) -> Any:
    return load_components(FAMILY, [ModelConfig(path=folder)], torch_dtype=dtype, device="cpu", only=[name]).models[
        name
    ]


def held_bytes(model: Any) -> int:
    """Return the bytes of the parameters of a model, and of what its packed layers have beside them."""
    beside = [each for layer in packed_layers(model).values() for each in layer.buffers()]
    return tensor_bytes([*model.parameters(), *beside])


def packed_layers(model: Any) -> dict[str, QuantizedLinear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}


def exact(weight: Tensor, form: str) -> Tensor:
    """Return what a weight is after it was packed."""
    if form == "LLM.int8":
        largest = weight.abs().amax(1, keepdim=True)
        return (weight * (127 / largest)).round() * largest * (1 / 127)
    return nf4.dequantize_4bit(*nf4.quantize_4bit(weight, blocksize=BLOCK, quant_type=form))


@pytest.mark.parametrize("form", [*FORMS, "nf4 twice"])
def test_packed_layers_stay_packed_and_are_the_weights_that_they_hold(pack: Any, whole: Path, form: str) -> None:
    form, _, twice = form.partition(" ")
    folder, tensors = pack(form, "dit", twice=bool(twice)), load_file(whole / DIT)
    dit, expected = part(folder), part(whole)
    layers = packed_layers(dit)
    assert {"img_in", "proj_out", "transformer_blocks.1.attn.to_q"} <= layers.keys() and len(layers) > 20
    for name, layer in layers.items():
        wanted = exact(tensors[f"{name}.weight"], form)
        error = float((layer.whole_weight(wanted) - wanted).norm() / wanted.norm())
        assert error < 0.02 if twice else error == 0, name
    assert torch.equal(dit.txt_in.weight, expected.txt_in.weight), "what is not packed is as it was"
    assert part(folder, dtype=torch.bfloat16).txt_in.weight.dtype == torch.bfloat16
    assert stored_formats(FAMILY, [ModelConfig(path=folder)]) == {"dit": form}


def entry_of(folder: Path) -> dict[str, Tensor]:
    return {name: value for name, value in CachedDataset(folder)[0][CACHED].items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("form", FORMS)
def test_a_packed_model_is_cached_trained_and_drawn_with(pack: Any, data: Path, tmp_path: Path, form: str) -> None:
    """A cache has what the text encoder gives with the same weights made whole."""
    folder = pack(form, "dit", "text_encoder")
    same = Path(shutil.copytree(folder, tmp_path / "same"))
    unpack(same / FILES["text_encoder"], part(folder, "text_encoder"))
    asked: dict[str, Any] = {"dataset_base_path": data, "device": "cpu", "task": "sft"}
    for each in (folder, same):
        make_cache(CacheOptions(model=str(each), output_path=tmp_path / f"cache-{each.name}", **asked))
    ours, expected = (entry_of(tmp_path / f"cache-{each.name}") for each in (folder, same))
    assert (
        len(ours) > 1
        and ours.keys() == expected.keys()
        and all(torch.equal(ours[name], expected[name]) for name in ours)
    )
    result = train(options(folder, data, tmp_path / "out", lora_rank=2, max_steps=2))
    assert result.final_loss > 0
    drawn = InferOptions(model=str(folder), prompt="a fox", output=tmp_path / "a.png", lora=[f"{result.checkpoint}"])
    pipe: Any = load(drawn, resolve_model(str(folder)), torch.device("cpu"), torch.float32)
    assert packed_layers(pipe.dit) and packed_layers(pipe.text_encoder)
    assert pipe(prompt="a fox", height=32, width=32, num_inference_steps=1, seed=1, cfg_scale=1.0).size == (32, 32)


def unpack(file: Path, model: Any) -> None:
    """Write the file of a packed component with its weights made whole, and its config.json without the packing."""
    layers = packed_layers(model)
    whole = {f"{name}.weight": layer.whole_weight(layer.weight) for name, layer in layers.items()}
    tied = model.all_tied_weights_keys
    kept = {name: each for name, each in model.state_dict().items() if name not in tied and name not in whole}
    save_file({**kept, **whole}, file, metadata={"format": "pt"})
    config = json.loads((file.parent / "config.json").read_text())
    del config["quantization_config"]
    (file.parent / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("form", FORMS)
def test_a_dry_run_reckons_with_the_bytes_that_are_held(pack: Any, data: Path, tmp_path: Path, form: str) -> None:
    folder = pack(form, "dit", "text_encoder", twice=form == "nf4")
    shell = SimulatedModel(resolve_model(str(folder)), None)
    for dtype in (torch.float32, torch.bfloat16):
        pipe = shell.pipeline(Simulation(), dtype, lambda _: dtype)  # noqa: B023 - called at once
        for name in ("dit", "text_encoder"):
            real, fake = part(folder, name, dtype), pipe.component(name)
            assert len(packed_layers(fake)) == len(packed_layers(real)) > 10
            ours, held = map(held_bytes, (fake, real))
            assert ours == held, (name, dtype)
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    needs = asdict(dry_run(options(folder, data, tmp_path / "never", lora_rank=2)).memory)
    assert needs["weights"] > 0 and 0 < needs["stage_one"] < size


def test_an_encoder_that_is_packed_already_is_not_among_those_to_pack(pack: Any, whole: Path, data: Path) -> None:
    found = []
    for folder in (pack("LLM.int8", "text_encoder"), whole):
        plan = plan_training(options(folder, data, data / "never"), NoProgress(), offline=True)
        found.append(Estimate(plan).encode().largest)
        plan.accelerator.end_training()
    assert found == ["", "text_encoder"]


def test_other_formats_are_named_and_not_read(pack: Any) -> None:
    folder = pack("nf4", "dit")
    for settings, problem in (
        ({**CONFIGS["nf4"], "bnb_4bit_quant_type": "fp8"}, "quantized with bitsandbytes, which are not read"),
        ({"quant_method": "gptq", "bits": 4}, "quantized with gptq, which are not read"),
        ({**CONFIGS["nf4"], "bnb_4bit_quant_type": "fp4"}, "no packed weight, but its config.json has them in fp4"),
        (CONFIGS["LLM.int8"], "holds weights quantized with bitsandbytes .4 bits"),
    ):
        write_config(folder / "transformer", settings)
        with pytest.raises(DsctlError, match=problem) as caught:
            part(folder)
        assert caught.value.hint is not None and "fetch the weights in bf16" in caught.value.hint


Q = "transformer_blocks.0.attn.to_q.weight"
LAYER = Q.removesuffix(".weight")


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
def test_damaged_files_in_4_bits_are_refused_by_name(pack: Any, changes: dict[str, Any], problem: str) -> None:
    refuses(pack("nf4", "dit"), changes, problem)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({Q: torch.zeros(3, 3, dtype=torch.int8)}, "to_q.weight is missing or has another size"),
        ({f"{LAYER}.SCB": torch.ones(3)}, "to_q.weight is missing or has another size"),
        ({f"{LAYER}.SCB": torch.full((32,), float("inf"))}, "to_q.SCB has a value that is no finite number"),
        ({f"{LAYER}.SCB": None, f"{LAYER}.weight_format": None}, "to_q.weight is torch.int8, and nothing says how"),
        ({f"{LAYER}.weight_format": torch.ones((), dtype=torch.uint8)}, "order of bytes that one kind of GPU reads"),
        ({"norm_out.SCB": torch.ones(3)}, "norm_out packed, which is no such layer"),
    ],
)
def test_damaged_files_in_8_bits_are_refused_by_name(pack: Any, changes: dict[str, Any], problem: str) -> None:
    refuses(pack("LLM.int8", "dit"), changes, problem)


def refuses(folder: Path, changes: dict[str, Tensor | None], problem: str) -> None:
    """Replace tensors of the denoiser by name, None takes one out; it is then refused in one line."""

    def changed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: each for name, each in {**tensors, **changes}.items() if each is not None}

    change(folder / DIT, changed)
    with pytest.raises(DsctlError, match=problem) as caught:
        part(folder)
    assert "\n" not in caught.value.problem and caught.value.hint
