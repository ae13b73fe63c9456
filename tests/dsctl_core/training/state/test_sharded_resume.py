"""A run that is divided between processes goes on to the bit from a state in pieces, and in one process as well."""

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
from dsctl_core.training.state.folder import fault_of, state_folders
from tests.dsctl_core.training.runs_in_processes import FULL_DISK

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def metrics(folder: Path) -> list[tuple[float, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["grad_norm"]) for line in lines]


def test_a_divided_run_resumes_to_the_bit_from_pieces_and_in_one_process_too(
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
        "ema_decay": 0.5,
    }
    straight = {**common, "max_steps": 4, "output_path": str(tmp_path / "straight")}
    begun = {**common, "max_steps": 2, "output_path": str(tmp_path / "twice")}
    on = {**begun, "max_steps": 4, "resume": "latest"}
    runs = [straight, begun, {**on, FULL_DISK: True}, on]
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
    # The disk of the second process was full: both said so at once, and the state before it was whole.
    for rank in (0, 1):
        told = json.loads((tmp_path / f"{FULL_DISK}-{rank}.json").read_text())
        assert told["problem"].endswith("could not be written: no space left")
        assert told["seconds"] < 60
    assert metrics(tmp_path / "twice") == metrics(tmp_path / "straight")
    for file in ("step-4.safetensors", "step-4.ema.safetensors"):
        once, twice = (load_file(tmp_path / name / file) for name in ("straight", "twice"))
        assert once.keys() == twice.keys()
        assert all(torch.equal(once[name], twice[name]) for name in once)
    assert [step for step, _ in state_folders(tmp_path / "twice")] == [4, 2]
    assert list(tmp_path.rglob("*.tmp")) == []

    state = tmp_path / "straight" / "state" / "step-2"
    alone = {**straight, "batch_size": 2, "output_path": str(tmp_path / "alone"), "resume": str(state)}
    train(TrainOptions.model_validate(alone), NoProgress())
    one = load_file(tmp_path / "alone" / "step-4.ema.safetensors")
    assert all(torch.allclose(one[name], once[name], rtol=0, atol=1e-4) for name in once)
    # A piece that is cut off, or has another content, is no state, nor is one that lacks a piece.
    piece = sorted((state / "pieces").iterdir())[1]
    assert piece.name.startswith("shard-00002-") and fault_of(state) is None
    whole = piece.read_bytes()
    for spoiled in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), None):
        piece.unlink() if spoiled is None else piece.write_bytes(spoiled)
        assert piece.name in str(fault_of(state))
    assert len(metrics(tmp_path / "alone")) == 4
