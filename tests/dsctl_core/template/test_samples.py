"""Samples of a run that trains a template: drawn with the template as it is, and each with its own inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError
from dsctl_core.options import CacheOptions, TrainOptions
from dsctl_core.template.pipeline import TemplatePipeline

WAY = {"height": 32, "width": 48, "num_inference_steps": 2, "cfg_scale": 2.0}
PLAIN = {"prompt": "a fox", "seed": 4, **WAY}
LINES = ({**PLAIN, "template_inputs": {"scale": 0.9}}, PLAIN)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = []
    for number in range(4):
        Image.effect_noise((48, 32), 20 + 20 * number).convert("RGB").save(folder / f"{number}.png")
        given = {"scale": number / 4}
        rows.append({"image": f"{number}.png", "prompt": f"number {number}", "template_inputs": given})
    (folder / "metadata.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def settings(model_folder: Path, data: Path, tmp_path: Path, template: Callable[..., Path]) -> dict[str, Any]:
    """Return what every run here is started with."""
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in LINES))
    return {
        "model": str(model_folder),
        "dataset_base_path": data,
        "extra_inputs": ("template_inputs",),
        "template": str(template()),
        "trust_template": True,
        "trainable_models": ("template_model",),
        "learning_rate": 3e-2,
        "max_steps": 6,
        "sample_every": 6,
        "sample_prompts_file": file,
        "device": "cpu",
        "output_path": tmp_path / "out",
    }


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture, dtype=int)


def about(path: Path) -> dict[str, Any]:
    with Image.open(path) as picture:
        return json.loads(picture.info["parameters"])


def test_samples_are_the_pictures_of_inference_with_the_trained_template(settings: dict[str, Any], pipe: Any) -> None:
    result = train(TrainOptions(**settings))
    folder = result.output_path / "samples"
    templates = TemplatePipeline.from_pretrained(
        torch_dtype=torch.float32,
        device="cpu",
        model_configs=[ModelConfig(Path(settings["template"]))],
        trust_template=True,
        checkpoints=[result.checkpoint],
    )
    steered = np.asarray(templates(pipe, prompt="a fox", seed=4, **WAY, template_inputs=[{"scale": 0.9}]), dtype=int)
    plain = np.asarray(pipe("a fox", seed=4, **WAY), dtype=int)
    assert np.abs(pixels(folder / "step-6-1.png") - steered).max() <= 1
    assert np.abs(pixels(folder / "step-6-2.png") - plain).max() <= 1
    assert np.abs(steered - plain).max() > 4
    assert np.abs(pixels(folder / "step-0-1.png") - steered).max() > 4
    assert np.array_equal(pixels(folder / "step-0-2.png"), pixels(folder / "step-6-2.png"))
    told = about(folder / "step-6-1.png")
    assert (told["template_inputs"], told["step"]) == ({"scale": 0.9}, 6)


def test_drawing_changes_no_number_of_the_training_and_a_cache_gives_the_same_samples(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    drawn = train(TrainOptions(**settings))
    silent = {name: value for name, value in settings.items() if not name.startswith("sample")}
    alone = train(TrainOptions(**{**silent, "output_path": tmp_path / "silent"}))
    assert drawn.final_loss == alone.final_loss
    of_a_cache = ("model", "dataset_base_path", "extra_inputs", "template", "trust_template", "device")
    make_cache(CacheOptions(**{name: settings[name] for name in of_a_cache}, output_path=tmp_path / "cache"))
    of_data = ("model", "dataset_base_path", "extra_inputs")
    given = {name: value for name, value in settings.items() if name not in of_data}
    cached = train(TrainOptions(**{**given, "from_cache": tmp_path / "cache", "output_path": tmp_path / "cached"}))
    for path in (drawn.output_path / "samples").iterdir():
        assert np.array_equal(pixels(path), pixels(cached.output_path / "samples" / path.name))


def test_rows_of_the_dataset_are_drawn_with_their_own_inputs_where_no_prompt_is_given(settings: dict[str, Any]) -> None:
    small = {"sample_prompts_file": None, "sample_steps": 1, "sample_height": 32, "sample_width": 32, "max_steps": 1}
    result = train(TrainOptions(**{**settings, **small}))
    told = [about(path) for path in sorted((result.output_path / "samples").glob("step-1-*.png"))]
    assert [each["template_inputs"]["scale"] for each in told] == [0, 0.25, 0.5, 0.75]


def test_inputs_that_the_template_does_not_take_end_the_run_before_its_first_step(settings: dict[str, Any]) -> None:
    settings["sample_prompts_file"].write_text('{"prompt": "a fox", "template_inputs": {"scole": 0.9}}\n')
    with pytest.raises(DsctlError, match="the data processor failed on scole=0.9: TypeError"):
        train(TrainOptions(**settings))
