"""A value that is no finite number ends every command that loads it with exit 1, the file and the tensor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsctl_core.errors import DsctlError
from dsctl_core.pipeline import BasePipeline
from tests.dsctl.refusing import refused, words
from tests.dsctl.running import Dsctl

pytestmark = pytest.mark.usefixtures("files")
LAYER = "transformer_blocks.0.attn.to_q"
NAN = "has a value that is no finite number"


@pytest.fixture
def lora(model: Path) -> Path:
    """A LoRA with one NaN in a `lora_B`."""
    rows, columns = load_file(model / "transformer" / "diffusion_pytorch_model.safetensors")[f"{LAYER}.weight"].shape
    up = torch.zeros(rows, 2)
    up[1, 1] = float("nan")
    tensors = {f"{LAYER}.lora_A.weight": torch.ones(2, columns), f"{LAYER}.lora_B.weight": up}
    save_file(tensors, "nan.safetensors")
    return Path("nan.safetensors")


@pytest.mark.parametrize("command", ["infer", "train", "merge-lora", "lora info", "lora convert", "lora resize"])
def test_a_nan_in_a_lora_is_named_by_every_command_that_reads_it(dsctl: Dsctl, model: Path, lora: Path, command: str):
    lines = {
        "infer": words("infer", model, lora=str(lora)),
        "train": words("train", model, lora=str(lora)),
        "merge-lora": ["merge-lora", "--model", model, "--lora", lora, "--output", "merged"],
        "lora info": ["lora", "info", lora],
        "lora convert": ["lora", "convert", lora, "--to", "comfyui", "--output", "b.safetensors"],
        "lora resize": ["lora", "resize", lora, "--rank", "1", "--output", "b.safetensors"],
    }
    error, _ = refused(lambda: dsctl(*lines[command]), 1)
    assert f"nan.safetensors: {LAYER}.lora_B.weight {NAN}" in error


@pytest.mark.parametrize("command", ["infer", "train", "merge-lora"])
@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_a_nan_in_a_weight_of_the_model_is_named(dsctl: Dsctl, model: Path, lora: Path, command: str, part: str):
    shutil.copytree(model, "broken")
    file = Path("broken", part, "diffusion_pytorch_model.safetensors")
    tensors = load_file(file)
    name = max(name for name, tensor in tensors.items() if tensor.ndim >= 2)
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    good = {key: torch.ones_like(value) for key, value in load_file(lora).items()}
    save_file(good, "good.safetensors")
    place = Path("./broken").absolute()
    merging = ["merge-lora", "--model", place, "--lora", "good.safetensors", "--output", "merged"]
    error, _ = refused(lambda: dsctl(*(merging if command == "merge-lora" else words(command, place))), 1)
    assert f"{file.name}: {name} {NAN}" in error


def test_a_spread_of_latents_of_zero_is_named(dsctl: Dsctl, model: Path):
    shutil.copytree(model, "broken")
    file = Path("broken/vae/config.json")
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "latents_std": [0.0] + config["latents_std"][1:]}))
    error, _ = refused(lambda: dsctl(*words("infer", Path("./broken").absolute())), 1)
    assert "vae/config.json: latents_std has 0" in error


def test_a_picture_with_values_that_are_not_finite_is_not_drawn():
    picture = torch.zeros(1, 3, 4, 4)
    assert len(BasePipeline.vae_output_to_image(None, picture)) == 1  # type: ignore[arg-type]
    picture[0, 0, 1, 1] = float("nan")
    with pytest.raises(DsctlError, match="no finite numbers, so nothing can be seen"):
        BasePipeline.vae_output_to_image(None, picture)  # type: ignore[arg-type]


@pytest.mark.parametrize("command", ["train", "cache"])
def test_a_list_where_one_picture_is_needed_is_a_fault_of_its_row(dsctl: Dsctl, model: Path, command: str):
    Path("data/metadata.csv").unlink()
    Path("data/metadata.jsonl").write_text('{"image": ["a.png", "a.png"], "prompt": "x"}\n')
    error, hint = refused(lambda: dsctl(*words(command, model)), 1)
    assert "metadata.jsonl row 1 (line 1), image" in error
    assert "the value is a list of 2, but a row has one image" in error
    assert "a.png" in hint


@pytest.mark.parametrize(
    ("optimizer", "argument", "message"),
    [
        ("adamw", "amsgrad=no", "sets amsgrad to no, which is not true or false"),
        ("sgd", "nesterov=no", "sets nesterov to no, which is not true or false"),
        ("adamw", "eps=1e400", "sets eps to 1e400, which is not a finite number"),
        ("adamw", "betas=(0.9,1e400)", "which is not a finite number"),
        ("adamw", "betas=(0.9,0.99,0.999)", "which is not 2 numbers in brackets"),
        ("sgd", "momentum=much", "sets momentum to much, which is not a number"),
    ],
)
def test_an_optimizer_argument_of_another_type_is_refused(
    dsctl: Dsctl, model: Path, optimizer: str, argument: str, message: str
):
    line = words("train", model, optimizer=optimizer, optimizer_args=argument, learning_rate="0.001")
    error, _ = refused(lambda: dsctl(*line), 2)
    assert message in error


@pytest.mark.parametrize("option", ["model_paths", "template_inputs"])
@pytest.mark.parametrize(
    ("text", "message"),
    [("[" * 100_000, "nested more than 64 levels deep"), ('{"a": 1, "a": 2}', "has the key 'a' twice")],
)
def test_an_option_in_json_is_bounded(dsctl: Dsctl, model: Path, option: str, text: str, message: str):
    changes: dict[str, str | None] = {option: text}
    changes |= {"model": None} if option == "model_paths" else {"template": "t"}
    error, _ = refused(lambda: dsctl(*words("infer", model, **changes)), 2)
    assert message in error


@pytest.mark.parametrize("name", ["model.gguf", "weights.ckpt"])
def test_a_foreign_file_instead_of_a_model_is_named(dsctl: Dsctl, name: str):
    Path(name).write_bytes(b"GGUF\3\0\0\0" + bytes(64))
    for line in (words("infer", Path(name).absolute()), words("infer", Path(), model=None, model_paths=f'["{name}"]')):
        error, hint = refused(lambda line=line: dsctl(*line), 1)
        assert "is a GGUF file" in error
        assert "bf16, fp16 or fp32" in hint
