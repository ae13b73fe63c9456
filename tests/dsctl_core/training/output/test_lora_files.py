"""LoRA files written by training: formats, metadata, other tools, and LoRAs to train on top of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from dsctl.app import main
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.families import load_family, pipeline_class
from dsctl_core.lora import FORMATS, load_lora, read_lora
from tests.tiny_models import write_tiny_model

FAMILY = load_family("qwen-image")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model("qwen-image", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def _pictures():
    Path("data").mkdir()
    for name in ("red", "blue"):
        Image.new("RGB", (32, 32), name).save(f"data/{name}.png")
    Path("data/metadata.csv").write_text("image,prompt\nred.png,red\nblue.png,blue\n", encoding="utf-8")


def train(capsys, model, *more, output="out"):
    words = ("train", "sft", "--model", model, "--dataset-base-path", "data", "--lora-rank", "3", "--max-steps", "2")
    settings = ("--learning-rate", "1e-2", "--device", "cpu", "--output-path", output, "--json")
    assert main([str(word) for word in (*words, *settings, *more)]) == 0, capsys.readouterr().err
    return Path(json.loads(capsys.readouterr().out)["checkpoint"])


def velocity(dit):
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        return dit(
            hidden_states=torch.randn(1, 6, 64, generator=generator),
            timestep=torch.tensor([0.5]),
            encoder_hidden_states=torch.randn(1, 3, 32, generator=generator),
            encoder_hidden_states_mask=torch.ones(1, 3, dtype=torch.bool),
            img_shapes=[[(1, 2, 3)]],
            return_dict=False,
        )[0]


def ours(model, *loras):
    pipe = pipeline_class(FAMILY).from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(model)], only=["dit"]
    )
    for path in loras:
        load_lora(pipe, path)
    return velocity(pipe.dit)


@pytest.mark.parametrize("kind", [(), ("--use-dora",), ("--use-rslora",)])
def test_a_trained_lora_loads_in_diffusers_whole_and_gives_our_output(capsys, model, caplog, kind):
    from diffusers import QwenImagePipeline

    file = train(capsys, model, "--lora-alpha", "6", *kind)
    pipe = QwenImagePipeline.from_pretrained(str(model), local_files_only=True)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    loaded = {name for name, module in pipe.transformer.named_modules() if hasattr(module, "lora_A")}
    assert loaded == set(read_lora(file).components["dit"])
    expected = ours(model, file)
    torch.testing.assert_close(velocity(pipe.transformer), expected, atol=1e-5, rtol=1e-5)
    assert (expected - ours(model)).abs().max() > 1e-3


def test_every_format_of_one_training_gives_one_output(capsys, model):
    files = [train(capsys, model, "--lora-format", form, output=form) for form in FORMATS]
    assert files[-1] == Path("peft/step-2.peft")
    assert [read_lora(file).format for file in files] == list(FORMATS)
    outputs = [ours(model, file) for file in files]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], atol=1e-6, rtol=1e-6)


def test_the_header_says_where_the_lora_comes_from(capsys, model):
    file = train(capsys, model, "--trigger-words", "a robot", "--lora-dtype", "bfloat16")
    about = read_lora(file).metadata
    assert about["family"] == "qwen-image" and about["component"] == "dit" and about["kind"] == "lora"
    assert (about["rank"], about["alpha"], about["steps"], about["trigger_words"]) == ("3", "3", "2", "a robot")
    assert about["target_modules"].split(",") == list(FAMILY.lora_targets)
    assert about["base_model"] == str(model)
    assert len(about["base_weights"]) == len(about["dataset"]) == 64
    spec = {name.removeprefix("modelspec."): text for name, text in about.items() if name.startswith("modelspec.")}
    assert spec["sai_model_spec"] == "1.0.1"
    assert spec["architecture"] == "qwen-image/lora" and spec["implementation"] == "diffusers"
    assert spec["trigger_phrase"] == "a robot" and spec["hash_sha256"].startswith("0x")


def test_another_base_or_dataset_has_another_identity(capsys, model, tmp_path):
    first = read_lora(train(capsys, model, output="a")).metadata
    Path("data/metadata.csv").write_text("image,prompt\nred.png,red\nblue.png,green\n", encoding="utf-8")
    second = read_lora(train(capsys, model, output="b")).metadata
    other = write_tiny_model("qwen-image", tmp_path / "other", seed=1)
    third = read_lora(train(capsys, other, output="c")).metadata
    assert first["base_weights"] == second["base_weights"] != third["base_weights"]
    assert first["dataset"] != second["dataset"] == third["dataset"]


def test_a_lora_below_the_training_is_part_of_the_base(capsys, model):
    below = train(capsys, model, "--lora-format", "kohya", output="below")
    plain = train(capsys, model, "--seed", "5", output="plain")
    at_zero = train(capsys, model, "--seed", "5", "--lora", f"{below}:0", output="zero")
    on_top = train(capsys, model, "--seed", "5", "--lora", f"{below}:1", "--lora", f"{below}:2", output="top")
    weights = [read_lora(file).components["dit"] for file in (plain, at_zero, on_top)]
    layer = next(iter(weights[0]))
    assert torch.equal(weights[0][layer].up, weights[1][layer].up)
    assert not torch.equal(weights[0][layer].up, weights[2][layer].up)
