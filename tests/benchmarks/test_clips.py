"""The benchmark of clips runs to its end and writes what it measured."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_it_measures_decoding_beside_pyav_and_the_bytes_of_a_cached_clip(python, tmp_path):
    output = tmp_path / "new" / "clips.json"
    settings = ["--clips", "3", "--seconds", "0.3", "--frames", "5", "--width", "64", "--height", "32", "--rounds", "1"]
    words = [python, "-m", "benchmarks.clips", *settings, "--output", str(output)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert "of plain PyAV" in done.stdout
    measured = json.loads(output.read_text())
    assert measured["decode"]["frames"] == 3 * 7
    assert measured["decode"]["share_of_pyav_speed"] > 0
    assert measured["cache"]["latent_bytes"] == 2 * 16 * 2 * 8 * 4
    assert 1 < measured["cache"]["ratio"] < 5  # a cache has a few kilobytes of its own
