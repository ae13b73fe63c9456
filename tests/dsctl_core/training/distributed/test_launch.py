"""Several processes are started as asked, come to one end, and what cannot be started is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.training.distributed.launch import Ended, run_in_processes, threads

MODULE = "tests.dsctl_core.launched"


@pytest.fixture(autouse=True)
def _found(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(repository))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def started(folder: Path) -> list[dict[str, str]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def test_each_process_knows_its_number_and_gets_its_share_of_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    before = dict(os.environ)
    ended = run_in_processes(MODULE, [str(tmp_path), "well"], processes=2, cpu=True, environment={"MINE": "yes"})
    assert ended is None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert started(tmp_path) == [
        {
            "RANK": rank,
            "WORLD_SIZE": "2",
            "OMP_NUM_THREADS": str(max(cores // 2, 1)),
            "OMP_WAIT_POLICY": "PASSIVE",
            "ACCELERATE_USE_CPU": "true",
            "MINE": "yes",
        }
        for rank in "01"
    ]
    assert dict(os.environ) == before


def test_settings_of_openmp_from_outside_stay(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert threads(2, on_cpu=True) == {}


def test_threads_on_gpus_may_spin(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert set(threads(2, on_cpu=False)) == {"OMP_NUM_THREADS"}
    assert int(threads(10**6, on_cpu=False)["OMP_NUM_THREADS"]) == 1


def test_the_process_that_failed_first_is_told(tmp_path):
    assert run_in_processes(MODULE, [str(tmp_path), "fail"], processes=2, cpu=True) == Ended(rank=1, exit_code=3)


def test_a_process_that_was_killed_is_told(tmp_path):
    ended = run_in_processes(MODULE, [str(tmp_path), "die"], processes=2, cpu=True)
    assert ended == Ended(rank=1, exit_code=-signal.SIGKILL)


def test_a_process_waits_for_the_others_as_long_as_it_was_told(tmp_path):
    ended = run_in_processes(MODULE, [str(tmp_path), "late"], processes=2, cpu=True)
    assert ended is not None
    assert "timed out" in (tmp_path / "0.gave_up").read_text().lower()
    # Process 1 comes late to the second meeting: process 0 waited a second for it, not the 30 minutes of gloo.
    assert ended.exit_code == 4


def test_a_signal_is_passed_on_and_waited_for(tmp_path):
    code = (
        "import sys; from dsctl_core.training.distributed.launch import run_in_processes;"
        f"ended = run_in_processes({MODULE!r}, [sys.argv[1], 'wait'], processes=2, cpu=True);"
        "sys.exit(f'{ended.signal}')"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(600):
            if len(list(tmp_path.glob("*.ready"))) == 2:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert told.strip() == str(int(signal.SIGTERM))
    assert sorted(path.name for path in tmp_path.glob("*.stopped")) == ["0.stopped", "1.stopped"]


def test_a_configuration_says_how_many_and_with_what(tmp_path, repository):
    text = (repository / "examples" / "accelerate" / "fsdp2.yaml").read_text()
    config = tmp_path / "two.yaml"
    config.write_text(text.replace("num_processes: 8", "num_processes: 2"))
    assert run_in_processes(MODULE, [str(tmp_path), "well"], config=config, cpu=True) is None
    assert [(each["WORLD_SIZE"], each["ACCELERATE_USE_FSDP"]) for each in started(tmp_path)] == [("2", "true")] * 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "does not exist"),
        ("a: [", "is no configuration of accelerate: "),
        ("num_processes: 2\ncolour: red\n", "is no configuration of accelerate: "),
        ("- 1\n", "is no configuration of accelerate: "),
        ("distributed_type: MULTI_CPU\nnum_processes: 2\n", "asks for processes on CPUs"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, problem):
    config = tmp_path / "bad.yaml"
    if text is not None:
        config.write_text(text)
    with pytest.raises(DsctlError, match=problem) as caught:
        run_in_processes(MODULE, [str(tmp_path), "well"], config=config, cpu=True)
    assert "bad.yaml" in caught.value.problem
    assert caught.value.hint
    assert started(tmp_path) == []


def test_more_processes_than_gpus_are_refused(tmp_path, monkeypatch, repository):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    fsdp = repository / "examples" / "accelerate" / "fsdp2.yaml"
    for asked in ({"processes": 8}, {"config": fsdp}):
        with pytest.raises(UsageError, match="8 processes are asked for, but this machine has 2 GPUs"):
            run_in_processes(MODULE, [str(tmp_path), "well"], **asked)
    assert started(tmp_path) == []
