"""accelerate's own launcher accepts the configurations, and reads from them what they say."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import accelerate.commands.launch as launch
import pytest
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin, patch_environment

FOLDER = Path(__file__).parents[2] / "examples" / "accelerate"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
OFFLOADED = {
    "zero2.yaml": (2, "none", "none"),
    "zero2_offload.yaml": (2, "cpu", "none"),
    "zero3_offload.yaml": (3, "cpu", "cpu"),
}


def launched(config: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """Return which launcher accelerate takes for `config`, and with which arguments."""
    taken: list[tuple[str, Any]] = []
    for name in ("multi_gpu_launcher", "deepspeed_launcher", "simple_launcher"):
        monkeypatch.setattr(launch, name, lambda arguments, name=name: taken.append((name, arguments)))
    parser = launch.launch_command_parser()
    launch.launch_command(parser.parse_args(["--config_file", str(config), "-m", "dsctl", "train"]))
    return taken[0]


def test_the_configurations_are_seen():
    assert {"ddp.yaml", "fsdp2.yaml", *OFFLOADED} == {path.name for path in CONFIGS}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_starts_eight_processes_in_bfloat16(config, monkeypatch):
    name, arguments = launched(config, monkeypatch)
    assert name == ("deepspeed_launcher" if config.name in OFFLOADED else "multi_gpu_launcher")
    assert (arguments.num_processes, arguments.num_machines, arguments.mixed_precision) == (8, 1, "bf16")


def test_fsdp2_divides_again_after_each_block(monkeypatch):
    from accelerate.utils.launch import prepare_multi_gpu_env

    _, arguments = launched(FOLDER / "fsdp2.yaml", monkeypatch)
    with patch_environment(**prepare_multi_gpu_env(arguments)):
        plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)


@pytest.mark.parametrize("name", list(OFFLOADED))
def test_deepspeed_gets_its_stage_and_what_is_offloaded(name, monkeypatch):
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    _, arguments = launched(FOLDER / name, monkeypatch)
    arguments.deepspeed_fields_from_accelerate_config = ""
    with patch_environment(**prepare_deepspeed_cmd_env(arguments)[1]):
        plugin = DeepSpeedPlugin()
    zero = plugin.deepspeed_config["zero_optimization"]
    told = (zero["stage"], zero["offload_optimizer"]["device"], zero["offload_param"]["device"])
    assert told == OFFLOADED[name]


def test_the_slurm_script_is_a_script():
    subprocess.run(["bash", "-n", str(FOLDER / "slurm.sh")], check=True)
    assert (FOLDER / "slurm.sh").stat().st_mode & 0o100
