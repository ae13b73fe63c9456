"""Runs with another optimizer, course and noise levels: they reach the training, and run.json tells of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dsctl_core.commands.train import train
from dsctl_core.errors import UsageError
from dsctl_core.options import TrainOptions


def run(model: Path, data: Path, out: Path, **values: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train for four steps, and return run.json and the lines of metrics.jsonl."""
    base = {"model": str(model), "dataset_base_path": data, "lora_rank": 2, "max_steps": 4, "device": "cpu"}
    train(TrainOptions(**{**base, "output_path": out, **values}))
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return json.loads((out / "run.json").read_text()), [json.loads(line) for line in lines]


def test_optimizer_and_course_are_those_asked_for_and_are_told_of(
    tiny_folder: Path, dataset_folder: Path, tmp_path: Path
):
    about, lines = run(
        tiny_folder,
        dataset_folder,
        tmp_path / "out",
        optimizer="adafactor",
        optimizer_args="clip_threshold=2",
        learning_rate=1e-3,
        lr_scheduler="linear",
        lr_warmup_steps=0.25,
    )
    assert [line["lr"] for line in lines] == pytest.approx([5e-4, 1e-3, 1e-3 * 2 / 3, 1e-3 / 3])
    assert about["optimizer"] == {
        "class": "transformers.optimization.Adafactor",
        "lr": 1e-3,
        "scale_parameter": False,
        "relative_step": False,
        "warmup_init": False,
        "clip_threshold": 2,
    }
    assert about["options"]["lr_scheduler"] == "linear"
    assert about["options"]["optimizer_args"] == ["clip_threshold=2"]


def test_an_argument_that_is_not_there_stops_the_run_before_anything_is_written(dataset_folder: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="unknown argument of AdamW 'beta'"):
        run(Path("tiny"), dataset_folder, tmp_path / "out", optimizer_args="beta=0.9")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"timestep_sampling": "logit_normal"},
        {"timestep_sampling": "logit_normal", "logit_mean": 2, "logit_std": 0.5},
        {"timestep_sampling": "diffsynth"},
        {"timestep_shift": 1},
        {"min_timestep_boundary": 0.5},
        {"max_timestep_boundary": 0.2},
        {"loss_weighting": "none"},
    ],
)
def test_each_option_about_noise_levels_changes_what_is_learned(
    tiny_folder: Path, dataset_folder: Path, tmp_path: Path, values: dict
):
    _, usual = run(tiny_folder, dataset_folder, tmp_path / "usual", max_steps=2)
    about, lines = run(tiny_folder, dataset_folder, tmp_path / "other", max_steps=2, **values)
    assert [line["loss"] for line in lines] != [line["loss"] for line in usual]
    assert {name: about["options"][name] for name in values} == values


def test_levels_do_not_depend_on_how_a_batch_is_made(tiny_folder: Path, dataset_folder: Path, tmp_path: Path):
    losses = []
    for batch, accumulate in ((4, 1), (2, 2)):
        values = {"batch_size": batch, "gradient_accumulation_steps": accumulate, "timestep_sampling": "logit_normal"}
        losses.append([line["loss"] for line in run(tiny_folder, dataset_folder, tmp_path / f"{batch}", **values)[1]])
    torch.testing.assert_close(*(torch.tensor(each) for each in losses), atol=1e-5, rtol=0)
