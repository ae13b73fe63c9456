"""The benchmark of the two stages runs, and a cached sample is as small as it should be."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TINY = ["--tiny", "--rounds", "1", "--steps", "1", "--samples", "2", "--size", "32", "--encode-batch-size", "2"]


def measured(python: str, part: str, folder: Path) -> dict:
    command = [python, "-m", "benchmarks.two_stages", *TINY, "--only", part, "--json", folder / "numbers.json"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| | dsctl | beside it | ratio |")
    return json.loads((folder / "numbers.json").read_text())


def test_a_cached_sample_takes_at_most_0_12_of_diffsynths(python: str, tmp_path: Path):
    assert 500_000 < measured(python, "size", tmp_path)["bytes_at_1024"] <= 0.12 * 5_770_000


@pytest.mark.parametrize("part", ["encode", "once"])
def test_both_sides_do_their_rounds(python: str, tmp_path: Path, part: str):
    (row,) = measured(python, part, tmp_path)["comparisons"]
    assert min(*row["ours"], *row["plain"]) > 0
