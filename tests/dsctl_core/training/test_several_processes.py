"""Two processes train as one does: each on a node of its own with the whole model (DDP), or with a part of it (FSDP2).

The two nodes are two launchers on this machine, each with a configuration that names the other's address.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dsctl_core.commands.train import train
from dsctl_core.options import TrainOptions
from dsctl_core.progress import NoProgress
from tests.dsctl_core.training.conftest import picture

# Of the last block's text branch nothing comes out but its keys and values: these never get a gradient.
WITHOUT_GRADIENT = ("transformer_blocks.1.attn.to_add_out", "transformer_blocks.1.txt_mlp.net.2")
CASES: dict[str, dict[str, Any]] = {
    "lora": {
        "lora_rank": 3,
        "lora_target_modules": ["to_q", "add_k_proj", "to_add_out", "txt_mlp.net.2"],
        "ema_decay": 0.5,
    },
    "lora_bf16": {"lora_rank": 1, "mixed_precision": "bf16", "use_gradient_checkpointing": True},
    "whole": {"trainable_models": ["dit"]},
    "control": {"controlnet": ["blockwise"], "trainable_models": ["controlnet"]},
}
ENGINES = ("nodes", "fsdp2")
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
RUNS = "tests.dsctl_core.training.runs_in_processes"
NODE = """\
from pathlib import Path
from sys import argv
from dsctl_core.training.distributed.launch import run_in_processes

raise SystemExit(str(ended) if (ended := run_in_processes(argv[1], argv[2:3], config=Path(argv[3]), cpu=True)) else 0)
"""
TOLERANCE = {"lora": 1e-5, "lora_bf16": 1e-3, "whole": 1e-5, "control": 1e-5}


def settings(case: str, model: Path, data: Path, folder: Path, batch_size: int, accumulate: int) -> dict[str, Any]:
    common = {
        "model": str(model),
        "dataset_base_path": str(data),
        "dataset_repeat": 4,
        "max_steps": 3,
        "cache": False,
        "device": "cpu",
        "learning_rate": 1e-4,
        "save_steps": 2,
        "batch_size": batch_size,
        "gradient_accumulation_steps": accumulate,
        "output_path": str(folder / case),
    }
    return {**common, **CASES[case]}


def configurations(root: Path, nodes: int) -> list[Path]:
    """Write accelerate's configuration of each of several nodes with a process, which meet on the loopback device."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = [root / f"node{number}.yaml" for number in range(nodes)]
    for number, file in enumerate(files):
        lines = ["compute_environment: LOCAL_MACHINE", "distributed_type: MULTI_GPU", "mixed_precision: 'no'"]
        lines += [f"num_machines: {nodes}", f"num_processes: {nodes}", f"machine_rank: {number}"]
        lines += ["main_process_ip: 127.0.0.1", f"main_process_port: {port}", "same_network: true"]
        file.write_text("\n".join(lines) + "\n")
    return files


def started(command: list[str], **environment: str) -> subprocess.Popen[str]:
    own = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(Path(__file__).parents[3])}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env={**os.environ, **environment, **own}, text=True, **pipes)


def ended(process: subprocess.Popen[str]) -> None:
    _, told = process.communicate(timeout=600)
    assert process.returncode == 0, told


@pytest.fixture(scope="module")
def runs(python, tiny_folder, tmp_path_factory) -> dict[str, Path]:
    """The folders of the runs: of one process in batches of 4, and of two in pairs of batches of 1."""
    root = tmp_path_factory.mktemp("runs")
    data = root / "data"
    data.mkdir()
    lines = ["image,control_image,prompt"]
    for number, caption in enumerate(["a red one", "a blue one", "two green ones", "nothing"]):
        picture(32, 32, seed=number).save(data / f"{number}.png")
        lines.append(f"{number}.png,{3 - number}.png,{caption}")
    (data / "metadata.csv").write_text("\n".join(lines) + "\n")
    for name in ENGINES:
        (root / name).mkdir()
        (root / f"{name}.json").write_text(
            json.dumps([settings(case, tiny_folder, data, root / name, 1, 2) for case in CASES])
        )
    launch = [python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    ended(started([*launch, RUNS, str(root / "fsdp2.json")], **SHARDED))
    files = configurations(root, nodes=2)
    nodes = [started([python, "-c", NODE, RUNS, str(root / "nodes.json"), str(file)]) for file in files]
    for process in nodes:
        ended(process)
    for case in CASES:
        torch.manual_seed(0)
        options = settings(case, tiny_folder, data, root / "one", 4, 1)
        train(TrainOptions.model_validate(options), NoProgress())
    return {name: root / name for name in ("one", *ENGINES)}


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ENGINES)
def test_losses_and_gradients_are_those_of_one_process(runs, engine, case):
    one, several = metrics(runs["one"] / case), metrics(runs[engine] / case)
    assert len(one) == len(several) == 3
    for a, b in zip(one, several, strict=True):
        for name in ("loss", "grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=10 * TOLERANCE[case])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("step", [2, 3])
def test_checkpoints_have_the_names_and_values_of_one_process(runs, engine, case, step):
    one, several = (load_file(runs[name] / case / f"step-{step}.safetensors") for name in ("one", engine))
    assert {name: (value.shape, value.dtype) for name, value in several.items()} == {
        name: (value.shape, value.dtype) for name, value in one.items()
    }
    for name, value in several.items():
        assert torch.allclose(value, one[name], rtol=0, atol=TOLERANCE[case]), name


@pytest.mark.parametrize("engine", ENGINES)
def test_the_average_of_the_weights_is_that_of_one_process(runs, engine):
    own = load_file(runs[engine] / "lora" / "step-3.safetensors")
    one, several = (load_file(runs[name] / "lora" / "step-3.ema.safetensors") for name in ("one", engine))
    assert one.keys() == several.keys() == own.keys()
    assert any(not torch.equal(several[name], own[name]) for name in own)
    for name, value in several.items():
        assert torch.allclose(value, one[name], rtol=0, atol=TOLERANCE["lora"]), name


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_that_never_get_a_gradient_need_no_flag(runs, engine):
    saved = load_file(runs[engine] / "lora" / "step-3.safetensors")
    up = {name: bool(value.any()) for name, value in saved.items() if "lora_B" in name}
    for layer in WITHOUT_GRADIENT:
        assert [moved for name, moved in up.items() if layer in name] == [False]
    assert sum(up.values()) == len(up) - len(WITHOUT_GRADIENT)


def test_the_samples_are_shared_and_what_is_written_is_written_once(runs):
    for engine in ENGINES:
        run = json.loads((runs[engine] / "lora" / "run.json").read_text())
        assert run["hardware"]["processes"] == 2
        assert run["parameters"] == json.loads((runs["one"] / "lora" / "run.json").read_text())["parameters"]
        assert [each["step"] for each in metrics(runs[engine] / "lora")] == [1, 2, 3]
