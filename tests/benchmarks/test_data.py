"""The benchmark of the data side runs to its end and writes what it measured."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_it_measures_validation_beside_decoding_and_the_start_of_the_order(python, tmp_path):
    output = tmp_path / "new" / "data.json"
    settings = ["--pictures", "4", "--side", "128", "--rounds", "1", "--output", str(output)]
    done = subprocess.run([python, "-m", "benchmarks.data", *settings], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert "of plain Pillow decoding" in done.stdout
    measured = json.loads(output.read_text())
    assert measured["validation"]["pictures"] == 4
    assert measured["validation"]["share_of_decoding_speed"] > 0
    assert measured["sampler"]["samples_an_epoch"] == 12 * 10**9
    assert measured["sampler"]["start_ms"] < 100  # 0.2 on a quiet machine
    assert measured["sampler"]["start_bytes"] < 10**6
