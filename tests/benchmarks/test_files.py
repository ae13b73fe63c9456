"""The file benchmarks run to their end on small files, and stop when the two sides differ."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("part", "rows"), [("merge", 2), ("download", 4)])
def test_a_part_measures_both_sides(python: str, part: str, rows: int):
    sizes = ("--merge-gigabytes", "0.01", "--download-gigabytes", "0.002", "--rounds", "1")
    # What the hubs' clients read of the environment, they read when they are imported: by each process itself.
    interpreter = python if part == "merge" else sys.executable
    command = [interpreter, "-m", "benchmarks.files", "--only", part, *sizes]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[1:]
    assert len(lines) == rows
    assert all(" s " in line and " MB peak" in line for line in lines)
