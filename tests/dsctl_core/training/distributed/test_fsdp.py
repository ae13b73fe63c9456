"""A model that is divided between processes trains as a whole one, and becomes whole where it is written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import accelerate
import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import save_file
from torch import nn

from dsctl_core.errors import UsageError
from dsctl_core.training.distributed import fsdp as sharded
from dsctl_core.training.state.pieces import taken
from tests.dsctl_core.training.sharded_in_processes import Module

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def write_large(folder: Path, small: Path) -> Path:
    """Write a copy of the model `small` with a transformer of 48 MB, in bfloat16."""
    shutil.copytree(small, folder)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    config |= {"attention_head_dim": 64, "num_attention_heads": 9, "axes_dims_rope": [16, 24, 24], "num_layers": 2}
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        shapes = QwenImageTransformer2DModel.from_config(config).state_dict()
    weights = {name: torch.randn(each.shape, dtype=torch.bfloat16) for name, each in shapes.items()}
    save_file(weights, folder / "transformer" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return folder


def test_two_processes_divide_a_model_and_put_it_together_again(
    python: str, tmp_path: Path, repository: Path, tiny_folder: Path, dataset_folder: Path
):
    large = write_large(tmp_path / "large", tiny_folder)
    asked = {"model": str(large), "dataset_base_path": str(dataset_folder), "output_path": str(tmp_path / "out")}
    asked |= {"trainable_models": ["dit"], "mixed_precision": "bf16", "device": "cpu", "cache": False}
    (tmp_path / "options.json").write_text(json.dumps(asked))
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
        if "loaded" in said:  # where the system tells the memory of a process
            whole = 4 * said["loaded"]["numbers"]  # bytes in float32
            assert whole > 80_000_000
            # Half of the weights in float32, and half of the file, which has 2 bytes for each: three quarters, and the
            # other components. The whole file and all weights in float32 would be one and a half.
            assert 0.5 * whole < said["loaded"]["peak"] < whole
            assert 0.5 * whole < said["loaded"]["kept"] < 0.75 * whole


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
    assert taken(state, {}, "optimizer", keep=True, copy=False) == state
    assert taken(state, {}, "optimizer", keep=True, copy=False)["state"][0]["step"] is tensor
    assert taken(state, {}, "optimizer", keep=True, copy=True)["state"][0]["step"] is not tensor
    assert sharded.divided_state(state["state"], [nn.Parameter(tensor)]) == state["state"]
    assert sharded.whole(tensor) is tensor
