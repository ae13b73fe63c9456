"""A run that is divided between processes goes on from its state to the bit, and in one process as well."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dsctl_core.commands.train import train
from dsctl_core.options import TrainOptions
from dsctl_core.progress import NoProgress

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def metrics(folder: Path) -> list[tuple[float, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["grad_norm"]) for line in lines]


def test_a_divided_run_resumes_to_the_bit_and_its_state_is_whole(
    python, tiny_folder, dataset_folder, repository, tmp_path
):
    common: dict[str, Any] = {
        "model": str(tiny_folder),
        "dataset_base_path": str(dataset_folder),
        "cache": False,
        "device": "cpu",
        "trainable_models": ["dit"],
        "learning_rate": 1e-3,
        "dataset_repeat": 4,
        "save_steps": 2,
    }
    straight = {**common, "max_steps": 4, "output_path": str(tmp_path / "straight")}
    begun = {**common, "max_steps": 2, "output_path": str(tmp_path / "twice")}
    runs = [straight, begun, {**begun, "max_steps": 4, "resume": "latest"}]
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    launch = [python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    done = subprocess.run(
        [*launch, "tests.dsctl_core.training.runs_in_processes", str(tmp_path / "runs.json")],
        env={**os.environ, **FSDP, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "twice") == metrics(tmp_path / "straight")
    once, twice = (load_file(tmp_path / name / "step-4.safetensors") for name in ("straight", "twice"))
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[name], twice[name]) for name in once)

    state = tmp_path / "straight" / "state" / "step-2"
    alone = {**straight, "batch_size": 2, "output_path": str(tmp_path / "alone"), "resume": str(state)}
    train(TrainOptions.model_validate(alone), NoProgress())
    one = load_file(tmp_path / "alone" / "step-4.safetensors")
    assert all(torch.allclose(one[name], once[name], rtol=0, atol=1e-4) for name in once)
    assert len(metrics(tmp_path / "alone")) == 4
