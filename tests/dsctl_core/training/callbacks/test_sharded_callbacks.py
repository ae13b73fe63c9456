"""A run that is divided between processes is validated, drawn and averaged as one process does, and resumed so."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError
from dsctl_core.options import TrainOptions
from dsctl_core.progress import NoProgress
from dsctl_core.training.callbacks import validation as validating
from dsctl_core.training.callbacks.validation import Validation
from tests.dsctl_core.training.callbacks.test_samples import pixels
from tests.dsctl_core.training.runs import metrics

# A model that stays whole between forward and backward stays so after a forward without backward, too, which is where
# the average would be mixed up with the weights in training.
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false"}
SEEING = {
    "ema_decay": 0.5,
    "validation_split": 0.25,  # one row, so that one of two processes has none
    "validation_every": 1,
    "sample_every": 2,
    "sample_prompt": ["a red one"],
    "sample_height": 32,
    "sample_width": 32,
    "sample_steps": 2,
    "track": ["csv"],
}


@pytest.fixture
def runs(python, tiny_folder, dataset_folder, repository, tmp_path):
    """The folders of four steps in two processes, of two and two more, of four unseen, and of four in one process."""
    common: dict[str, Any] = {
        "model": str(tiny_folder),
        "dataset_base_path": str(dataset_folder),
        "cache": False,
        "device": "cpu",
        "trainable_models": ["dit"],
        "learning_rate": 1e-3,
        "dataset_repeat": 4,
        "save_steps": 2,
        "max_steps": 4,
    }
    straight = {**common, **SEEING, "output_path": str(tmp_path / "straight")}
    twice = {**straight, "output_path": str(tmp_path / "twice")}
    unseen = {**common, "validation_split": 0.25, "validation_every": 9, "output_path": str(tmp_path / "unseen")}
    todo = [straight, {**twice, "max_steps": 2}, {**twice, "resume": "latest"}, unseen]
    (tmp_path / "runs.json").write_text(json.dumps(todo))
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
    alone = {**straight, "batch_size": 2, "output_path": str(tmp_path / "alone")}
    train(TrainOptions.model_validate(alone), NoProgress())
    return {name: tmp_path / name for name in ("straight", "twice", "unseen", "alone")}


def values(folder: Path, name: str) -> dict[int, float]:
    return {line["step"]: line[name] for line in metrics(folder) if name in line}


def test_two_processes_validate_draw_and_average_a_divided_model_as_one_does(runs):
    one, several = runs["alone"], runs["straight"]
    assert sorted(values(several, "validation_loss")) == [0, 1, 2, 3, 4]
    for name in ("loss", "validation_loss"):
        assert values(several, name) == pytest.approx(values(one, name), rel=1e-4)
    drawn = sorted(path.name for path in (one / "samples").iterdir())
    assert drawn == [f"step-{step}-1.png" for step in (0, 2, 4)]
    for name in drawn:
        assert np.abs(pixels(one / "samples" / name) - pixels(several / "samples" / name)).max() <= 2
    for name in ("step-2", "step-4", "step-2.ema", "step-4.ema"):
        whole, parts = (load_file(folder / f"{name}.safetensors") for folder in (one, several))
        assert whole.keys() == parts.keys()
        assert all(parts[key].allclose(whole[key], rtol=0, atol=1e-4) for key in whole)

    assert values(several, "loss") == values(runs["unseen"], "loss"), "looking at it changed the training"
    assert metrics(runs["twice"]) == metrics(several)
    for name in ("step-4", "step-4.ema"):
        once, again = (load_file(runs[each] / f"{name}.safetensors") for each in ("straight", "twice"))
        assert all(again[key].equal(once[key]) for key in once)


@pytest.mark.parametrize("broken", [{0}, {0, 2}, {1, 3}, {0, 1, 2, 3, 4}], ids=str)
def test_a_row_that_cannot_be_loaded_lets_no_process_run_the_model_less_often(monkeypatch, broken):
    class Rows:
        repeat = 1

        def __len__(self):
            return 5

        def __getitem__(self, number):
            if number in broken:
                raise DsctlError("broken", hint="mend it")
            return {"_row": number}

    calls, found = [], []
    for rank in (0, 1):
        seen: list[int] = []
        validation = Validation(Rows(), 1, 1, None, on_bad_sample=lambda error: None)
        monkeypatch.setattr(validation, "_loss", lambda model, row, seen=seen: seen.append(row["_row"]) or row["_row"])
        monkeypatch.setattr(validating, "in_lockstep", lambda run: True)
        accelerator = SimpleNamespace(process_index=rank, num_processes=2)
        found += validation._losses(SimpleNamespace(accelerator=accelerator, model=None))
        calls.append(len(seen))
    assert sorted(found) == sorted(set(range(5)) - broken)
    assert calls == ([0, 0] if len(broken) == 5 else [3, 3])
