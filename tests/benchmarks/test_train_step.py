"""The benchmark of the training step trains as many parameters on both sides, in every precision, and times both."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks.train_step import FAMILIES, WRITERS, report

REPOSITORY = Path(__file__).parents[2]
TINY = ["--tiny", "--rounds", "1", "--steps", "1", "--samples", "2", "--size", "32"]


@pytest.mark.parametrize("family", FAMILIES)
def test_both_sides_do_their_rounds(python: str, tmp_path: Path, family: str):
    numbers = tmp_path / "numbers.json"
    command = [
        python,
        "-m",
        "benchmarks.train_step",
        *TINY,
        "--family",
        family,
        "--only",
        "bf16-recompute",
        *(("--only", "first") if family in WRITERS else ()),
    ]
    done = subprocess.run(
        [*command, "--json", numbers], cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("|  | dsctl | plain | times as fast |")
    rows = json.loads(numbers.read_text())["comparisons"]
    assert len(rows) == (2 if family in WRITERS else 1)
    for row in rows:
        assert min(*row["ours"], *row["plain"], *row["ours_cpu"], *row["plain_cpu"]) > 0
        assert min(row["ours_memory"], row["plain_memory"]) > 10**6  # of whole processes: see test_run.py


def test_half_the_time_is_twice_as_fast():
    row = {"name": "step", "ours": [1.0, 2.0], "plain": [2.0, 4.0], "ours_memory": 105, "plain_memory": 100}
    assert "| **2.00** |" in report({"comparisons": [row]})
    assert report({"comparisons": [row]}).endswith("| **1.05** |")
