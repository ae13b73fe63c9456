"""The memory that a run says it has taken is its own, and torch's error of unused weights names the option."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dsctl_core.errors import UsageError
from dsctl_core.options.processes import ProcessCountOptions
from dsctl_core.training.distributed.accelerator import make_accelerator, naming_unused_parameters, peak_memory

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


def test_weights_that_lose_their_gradient_in_the_middle_of_a_run_are_refused_by_the_option():
    text = "Expected to have finished reduction in the prior iteration before starting a new one."
    with pytest.raises(UsageError, match="--no-find-unused-parameters is given"), naming_unused_parameters():
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="something else"), naming_unused_parameters():
        raise RuntimeError("something else")


def test_a_limit_for_waiting_is_refused_where_nobody_waits():
    with pytest.raises(UsageError, match="--process-timeout is given, and this is one process"):
        make_accelerator("cpu", "no", ProcessCountOptions(process_timeout=5))
