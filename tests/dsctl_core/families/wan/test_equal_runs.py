"""Equal runs of Wan: two processes as one, and both denoisers in one run as each in a run of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dsctl_core.commands.train import train
from dsctl_core.lora.layers import tuner_layers
from dsctl_core.losses.timesteps import Objective
from dsctl_core.options import TrainOptions
from dsctl_core.training.model.task_module import TaskModule
from tests.dsctl_core.families.wan.conftest import Pair, Pairs, load
from tests.dsctl_core.families.wan.test_training import losses, row_of, write_clips

HIGH, LOW = torch.tensor(912.5), torch.tensor(412.5)  # above and below the boundary of 875
DRAWS = [(3, HIGH), (4, LOW), (5, LOW), (6, HIGH)]  # (seed, timestep) of each step


def learned(pair: Pair, components: str, draws: list[tuple[int, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
    """Return the LoRA of each component after a step of AdamW for each of `draws`."""
    torch.manual_seed(0)
    objective = Objective(weighting="none")
    module = TaskModule(load(pair.folder), "sft", lora_base_model=components, lora_rank=2, objective=objective)
    for component in components.split(","):
        for number, layer in enumerate(tuner_layers(module.pipe.component(component)).values()):
            generator = torch.Generator().manual_seed(number)
            for part in ("lora_A", "lora_B"):
                torch.nn.init.normal_(getattr(layer, part)["default"].weight, std=0.2, generator=generator)
    trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=0.01, weight_decay=0.1)
    for seed, level in draws:
        module(row_of(seed, _timestep=level)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {
        component: {name: value.detach() for name, value in trained.items() if f"{component}." in name}
        for component in components.split(",")
    }


def test_both_denoisers_in_one_run_learn_what_each_learns_alone_from_the_same_draws(pairs: Pairs) -> None:
    pair = pairs["t2v-a14b"]
    together = learned(pair, "dit,dit_2", DRAWS)
    for component, level in (("dit", HIGH), ("dit_2", LOW)):
        alone = learned(pair, component, [draw for draw in DRAWS if draw[1] is level])[component]
        before = learned(pair, component, [])[component]
        assert len(alone) == 40
        assert together[component].keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(together[component][name], value, rtol=0, atol=1e-7)
            assert not torch.equal(value, before[name])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_clips(tmp_path_factory.mktemp("equal") / "data")
    (folder / "metadata.csv").write_text("video,prompt\n0.mp4,a red fox\n1.mp4,two blue birds\n2.gif,a gif\n")
    return folder


def test_two_processes_learn_what_one_does(pairs: Pairs, data: Path, tmp_path: Path, python: str) -> None:
    def settings(out: Path, batch_size: int, accumulate: int) -> dict[str, Any]:
        return {
            "model": str(pairs["t2v"].folder),
            "dataset_base_path": str(data),
            "data_file_keys": ["video"],
            "num_frames": 5,
            "dataset_repeat": 4,
            "lora_rank": 2,
            "learning_rate": 1e-4,
            "max_steps": 3,
            "cache": False,
            "device": "cpu",
            "seed": 3,
            "batch_size": batch_size,
            "gradient_accumulation_steps": accumulate,
            "output_path": str(out),
        }

    (tmp_path / "runs.json").write_text(json.dumps([settings(tmp_path / "two", 1, 2)]))
    repository = Path(__file__).parents[4]
    launch = [python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    done = subprocess.run(
        [*launch, "tests.dsctl_core.training.runs_in_processes", str(tmp_path / "runs.json")],
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    torch.manual_seed(0)
    train(TrainOptions(**settings(tmp_path / "one", 4, 1)))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    one, two = (load_file(tmp_path / name / "step-3.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert any(bool(value.any()) for name, value in one.items() if "lora_B" in name)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)
