"""The memory that a run says it has taken is its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dsctl_core.commands.doctor import devices
from dsctl_core.commands.infer import placement
from dsctl_core.errors import UsageError
from dsctl_core.memory.release import release_memory
from dsctl_core.options import InferOptions
from dsctl_core.options.processes import ProcessCountOptions
from dsctl_core.training.distributed.accelerator import (
    leaves_mps,
    make_accelerator,
    peak_memory,
)
from dsctl_core.training.state.randomness import random_state, restore_random_state

CODE = "from dsctl_core.training.distributed.accelerator import peak_memory; print(peak_memory())"


def test_the_peak_counts_what_was_there_and_is_gone() -> None:
    block = torch.ones(64 * 1024 * 1024)  # 256 MiB
    size = block.numel() * block.element_size()
    del block
    assert peak_memory() > size


def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it() -> None:
    block = torch.ones(400 * 1024 * 1024)  # 1.6 GiB
    told = subprocess.run([sys.executable, "-c", CODE], env=os.environ, capture_output=True, text=True, check=True)
    assert int(told.stdout) < block.numel() * block.element_size() < peak_memory()


@pytest.mark.parametrize("text", [None, "Name:\tpython\nVmRSS:\t1 kB\n"])
def test_without_the_line_of_linux_it_is_what_the_system_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    status = tmp_path / "status"
    if text is not None:
        status.write_text(text)
    monkeypatch.setattr("dsctl_core.training.distributed.accelerator.STATUS", status)
    assert peak_memory() > 10_000_000


def test_a_limit_for_waiting_is_refused_where_nobody_waits():
    with pytest.raises(UsageError, match="--process-timeout is given, and this is one process"):
        make_accelerator("cpu", "no", ProcessCountOptions(process_timeout=5))


class AppleGpu:
    """Stands for an Apple GPU: it is there, counts its memory, and has a random generator."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.generator, self.emptied = torch.tensor([1], dtype=torch.uint8), 0
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
        monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 12345)
        monkeypatch.setattr(torch.mps, "get_rng_state", lambda: self.generator.clone())
        monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: setattr(self, "generator", state))
        monkeypatch.setattr(torch.mps, "empty_cache", lambda: setattr(self, "emptied", self.emptied + 1))


def test_an_apple_gpu_is_taken_where_it_is_asked_for_and_never_else(monkeypatch):
    one = ProcessCountOptions()
    with pytest.raises(UsageError, match="--device mps is asked for, but this torch was built without it"):
        make_accelerator("mps", None, one)
    assert not leaves_mps(None)
    AppleGpu(monkeypatch)
    made = make_accelerator("mps", None, one)
    assert (made.device.type, made.mixed_precision) == ("mps", "no")
    made.end_training()
    with pytest.raises(UsageError, match="--device mps computes in float32, and bf16 is asked for, by the cache"):
        make_accelerator("mps", None, one, "bf16")
    assert leaves_mps(None) and not leaves_mps("cpu") and not leaves_mps("mps")
    made = make_accelerator(None, None, one)
    assert made.device.type == "cpu"
    made.end_training()
    assert "--device mps" in devices()["mps"]


def test_an_apple_gpu_draws_in_float32_and_its_memory_and_generator_are_its_own(monkeypatch):
    asked = InferOptions(model="tiny", prompt="a", device="mps")
    with pytest.raises(UsageError, match="--device mps is asked for, but"):
        placement(asked)
    gpu, device = AppleGpu(monkeypatch), torch.device("mps")
    assert placement(asked) == (device, torch.float32)
    assert peak_memory(device) == 12345 != peak_memory(torch.device("cpu"))
    state = random_state(device)
    gpu.generator = torch.tensor([2], dtype=torch.uint8)
    restore_random_state(state, device)
    assert gpu.generator.tolist() == [1]
    restore_random_state({name: value for name, value in state.items() if name != "mps"}, device)  # of an older version
    release_memory()
    assert gpu.emptied == 1
