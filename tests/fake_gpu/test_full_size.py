"""Published models on a GPU that is not there: at full width, with two blocks of each kind, through the real loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import REPOSITORY

LORA = {"lora_rank": 32}
RUNS: dict[str, dict[str, Any]] = {
    "kept": {"model": "flux2-klein-base-4b", **LORA, "encode": True},
    "offloaded": {
        "model": "flux2-klein-base-4b",
        **LORA,
        "use_gradient_checkpointing": True,
        "offload_blocks": 4,
    },
    "whole": {"model": "z-image", "trainable_models": "dit"},
}
CLOSE = 0.1  # of the peak that is counted, which the dry run may be off


@pytest.fixture(scope="module")
def runs() -> dict[str, Any]:
    """Run all trainings in one process, into which the device is loaded before torch; return what each found."""
    command = [sys.executable, "-m", "tests.fake_gpu", "--depth", "2", *map(json.dumps, RUNS.values())]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=500)
    lines = ran.stdout.splitlines()
    assert len(lines) == len(RUNS), ran.stderr[-3000:]
    return dict(zip(RUNS, map(json.loads, lines), strict=True))


def test_nothing_is_on_the_wrong_device_nor_in_float32_and_the_host_waits_once_in_a_micro_batch(runs):
    assert {name: run["faults"] for name, run in runs.items()} == dict.fromkeys(RUNS, [])
    assert {name: sum(run["step"]["waits"].values()) for name, run in runs.items()} == dict.fromkeys(RUNS, 1)
    # Signals to stop, which go with what the host waits for; samples and noise are copied while it goes on.
    assert {name: run["step"]["awaited"] for name, run in runs.items()} == dict.fromkeys(RUNS, 3 * 4)


def test_the_dry_run_predicts_the_peak_of_the_device(runs):
    assert list(runs) == list(RUNS)
    for name, run in runs.items():
        memory, encode = run["predicted"], run["encode"]
        tensors = memory["weights"] + memory["step"]
        # The slabs of offloaded blocks are made when the first is fetched.
        assert run["weights"] == memory["weights"] or name == "offloaded", name
        assert abs(tensors / run["peak"] - 1) < CLOSE, (name, memory, run["peak"])
        assert not encode or abs(encode["predicted"] / encode["peak"] - 1) < CLOSE, name
        assert memory["peak"] > max(run["peak"], memory["stage_one"]), "context and fragments count beside tensors"


def test_each_lever_shows_in_what_is_counted(runs):
    kept, offloaded, whole = (runs[name] for name in RUNS)
    assert offloaded["peak"] < 0.7 * kept["peak"], "of recomputed blocks the inputs alone are kept"
    assert whole["saved"] == pytest.approx(whole["weights"], rel=0.01)
    assert kept["saved"] < 0.05 * kept["weights"]
    assert offloaded["weights"] < 0.3 * kept["weights"]


def test_offloaded_blocks_are_fetched_into_memory_that_is_there(runs):
    """A step allocates no bytes for weights, which come as bytes, and fetches each block but the last of a pass."""
    step = runs["offloaded"]["step"]
    whole = runs["kept"]["weights"] - runs["offloaded"]["weights"]  # of four blocks
    assert step["allocated"].get("uint8", 0) < 2**20
    assert 0.8 * whole < step["fetched"] < 2 * whole
