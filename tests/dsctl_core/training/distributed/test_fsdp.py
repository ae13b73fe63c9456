"""A model that is divided between processes trains as a whole one, and becomes whole where it is written."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import accelerate
import pytest
import torch
from torch import nn

from dsctl_core.errors import UsageError
from dsctl_core.training.distributed import fsdp as sharded
from tests.dsctl_core.training.sharded_in_processes import Module

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def test_two_processes_divide_a_model_and_put_it_together_again(python: str, tmp_path: Path, repository: Path):
    launch = [python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    done = subprocess.run(
        [*launch, "tests.dsctl_core.training.sharded_in_processes", str(tmp_path)],
        env={**os.environ, **FSDP, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        said = json.loads((tmp_path / f"{rank}.json").read_text())
        assert "4 or 8 bits" in said["refused"]
        assert said["uneven"].endswith("another number of times in one step: 4, 5")


def test_one_process_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch):
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    module = Module()
    before = list(module.parameters())
    accelerator = accelerate.Accelerator(cpu=True)
    sharded.shard(accelerator, module)
    assert sharded.divided(module) == []
    assert all(a is b for a, b in zip(before, module.parameters(), strict=True))
    with sharded.whole_weights(accelerator, module):
        assert all(a is b for a, b in zip(before, module.parameters(), strict=True))


def test_the_first_version_of_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    accelerator = accelerate.Accelerator(cpu=True)
    monkeypatch.setattr(type(accelerator), "num_processes", 2)
    with pytest.raises(UsageError, match="FSDP version 1") as caught:
        sharded.shard(accelerator, Module())
    assert "fsdp_version: 2" in caught.value.hint


def test_what_is_whole_stays_as_it_is():
    tensor = torch.ones(2)
    state = {"state": {0: {"step": tensor}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}
    assert sharded.whole_state(state) == state
    assert sharded.whole_state(state)["state"][0]["step"] is tensor
    assert sharded.divided_state(state["state"], [nn.Parameter(tensor)]) == state["state"]
    assert sharded.whole(tensor) is tensor
