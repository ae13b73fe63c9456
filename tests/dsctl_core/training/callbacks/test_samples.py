"""Samples: the pictures that inference would draw, and a training that cannot tell that they were drawn."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.infer import infer
from dsctl_core.commands.train import train
from dsctl_core.errors import UsageError
from dsctl_core.families.resolve import resolve_model
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.options import CacheOptions, InferOptions
from dsctl_core.training.callbacks.eval_mode import eval_mode
from dsctl_core.training.callbacks.sample_pipeline import prepare_sample_pipeline
from dsctl_core.training.callbacks.sample_prompts import SamplePrompt
from dsctl_core.training.model.open import empty_pipeline
from dsctl_core.training.model.weight_edits import WeightEdits
from tests.dsctl_core.training.test_run import options

SAMPLES = {
    "sample_every": 2,
    "sample_prompt": ["a red one", "two, on a table"],
    "sample_steps": 2,
    "sample_cfg_scale": 2.0,
    "sample_height": 32,
    "sample_width": 48,
}
LEARN = {"max_steps": 3, "learning_rate": 1e-2}
WHOLE = {"lora_rank": None, "trainable_models": "dit"}


def pixels(path):
    with Image.open(path) as opened:
        return np.asarray(opened).astype(int)


def about(path):
    with Image.open(path) as opened:
        return {**json.loads(opened.info["parameters"]), "size": opened.size}


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("kind", [{}, {"cache": False}, WHOLE, {"lora_base_model": "text_encoder", "lora_rank": 2}])
def test_a_run_that_draws_samples_equals_one_that_does_not_to_the_bit(tiny_folder, dataset_folder, tmp_path, kind):
    kind = {**LEARN, "max_steps": 5, "use_gradient_checkpointing": True, **kind}
    if "lora_base_model" in kind:
        kind["lora_target_modules"] = "q_proj"
    seen = train(options(tiny_folder, dataset_folder, tmp_path / "a", **kind, **SAMPLES))
    unseen = train(options(tiny_folder, dataset_folder, tmp_path / "b", **kind))
    first, second = (read_safetensors(result.checkpoint)[0] for result in (seen, unseen))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert all(first[name].equal(second[name]) for name in second)
    assert len(list((tmp_path / "a" / "samples").iterdir())) == 8


def test_samples_are_drawn_before_the_first_step_at_the_interval_and_at_the_end(tiny_folder, dataset_folder, tmp_path):
    train(options(tiny_folder, dataset_folder, tmp_path / "out", **LEARN, **SAMPLES))
    folder = tmp_path / "out" / "samples"
    assert {path.name for path in folder.iterdir()} == {f"step-{n}-{i}.png" for n in (0, 2, 3) for i in (1, 2)}
    expected = {"prompt": "two, on a table", "seed": 1, "step": 3, "height": 32, "cfg_scale": 2}
    assert about(folder / "step-3-2.png").items() >= expected.items()


@pytest.mark.parametrize("kind", [{}, {"cache": False}])
def test_samples_are_what_infer_draws_with_the_weights_of_that_step(tiny_folder, dataset_folder, tmp_path, kind):
    fast = {**LEARN, "learning_rate": 0.5}
    result = train(options(tiny_folder, dataset_folder, tmp_path / "out", **fast, **SAMPLES, **kind))
    same = {"model": str(tiny_folder), "prompt": "two, on a table", "seed": 1, "num_inference_steps": 2}
    same |= {"cfg_scale": 2.0, "height": 32, "width": 48, "device": "cpu"}
    infer(InferOptions(**same, output=tmp_path / "before.png"))
    infer(InferOptions(**same, output=tmp_path / "after.png", lora=[str(result.checkpoint)]))
    folder = tmp_path / "out" / "samples"
    before, after = pixels(tmp_path / "before.png"), pixels(tmp_path / "after.png")
    assert np.array_equal(pixels(folder / "step-0-2.png"), before)
    assert np.abs(pixels(folder / "step-3-2.png") - after).max() <= 1
    assert np.abs(after - before).max() > 8


def test_a_cache_gives_the_same_samples_as_the_dataset(tiny_folder, dataset_folder, tmp_path):
    folder = tmp_path / "cache"
    settings = {"model": str(tiny_folder), "dataset_base_path": dataset_folder, "device": "cpu"}
    make_cache(CacheOptions(**settings, output_path=folder))
    train(options(tiny_folder, dataset_folder, tmp_path / "a", **LEARN, **SAMPLES))
    cached = {"model": None, "dataset_base_path": None, "from_cache": folder}
    train(options(tiny_folder, None, tmp_path / "b", **LEARN, **SAMPLES, **cached))
    first, second = (sorted((tmp_path / name / "samples").iterdir()) for name in "ab")
    assert [path.name for path in first] == [path.name for path in second] != []
    for path, other in zip(first, second, strict=True):
        assert np.array_equal(pixels(path), pixels(other))


def test_what_reads_prompts_is_gone_before_training_begins(tiny_folder):
    resolved = resolve_model(str(tiny_folder))
    prompts = [SamplePrompt(text, "", 0, 32, 48, 2, 2.0) for text in ("a", "b")]
    sample_pipeline = prepare_sample_pipeline(
        resolved, empty_pipeline(resolved, torch.float32, "cpu"), prompts, ("dit",), WeightEdits()
    )
    assert set(sample_pipeline.models) == {"vae"}
    trained = resolved.load_pipeline(torch_dtype=torch.float32, device="cpu", only=("dit",))
    with torch.no_grad():
        first, second = (sample_pipeline.draw(trained, prompt, torch.no_grad) for prompt in prompts)
    assert first.tobytes() != second.tobytes()
    assert set(trained.components) == {"dit"}
    with pytest.raises(Exception, match="text_encoder"):
        sample_pipeline.draw(trained, SamplePrompt("never read", "", 0, 32, 48, 2, 2.0), torch.no_grad)


def test_captions_of_the_dataset_are_drawn_where_no_prompt_is_given(tiny_folder, dataset_folder, tmp_path):
    small = {"height": 32, "width": 32, "sample_every": 9, "sample_steps": 1, "max_steps": 1}
    train(options(tiny_folder, dataset_folder, tmp_path / "out", **small))
    told = [about(path) for path in sorted((tmp_path / "out" / "samples").glob("step-1-*.png"))]
    assert [each["prompt"] for each in told] == ["a red one", "a blue one", "two green ones on a table", "nothing"]
    assert {each["size"] for each in told} == {(32, 32)}


def test_a_size_that_the_model_cannot_draw_is_refused_before_anything_is_loaded(tiny_folder, dataset_folder, tmp_path):
    with pytest.raises(UsageError, match="the height 30 is not a multiple of 16"):
        train(options(tiny_folder, dataset_folder, tmp_path / "out", **{**SAMPLES, "sample_height": 30}))
    assert not (tmp_path / "out").exists()


def test_inside_evaluating_the_model_is_as_it_is_taken_away_and_outside_as_it_was():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Linear(2, 2).eval(), nn.Dropout()))
    entered = []

    class Averaged:
        def __enter__(self):
            entered.append("in")

        def __exit__(self, *error):
            entered.append("out")

    run = SimpleNamespace(model=model, accelerator=SimpleNamespace(device=torch.device("cpu")), shown_weights=Averaged)
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    with pytest.raises(KeyError), eval_mode(run):
        assert entered == ["in"]
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        torch.rand(3)
        raise KeyError
    assert entered == ["in", "out"]
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
