"""The benchmark of a step from a cache at an address runs to its end, over a line that is as slow as it says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_it_measures_a_step_from_an_address_beside_one_from_the_disk(python, tmp_path):
    output = tmp_path / "new" / "step.json"
    settings = ["--samples", "4", "--step", "0.01", "--share", "0.1", "--gigabits", "0.008", "--output", str(output)]
    command = [python, "-m", "benchmarks.remote_step", *settings]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    assert "from the address; ratio" in done.stdout
    measured = json.loads(output.read_text())
    waited = measured["cache_bytes"] / 1e6 - 4 * 0.01  # a million bytes a second
    cold = 4 * measured["seconds_a_step"]["address"]["first_epoch"]
    assert waited / 2 < cold < waited + 60
    assert 0 < measured["ratio"]["first_epoch"] < measured["ratio"]["second_epoch"]
