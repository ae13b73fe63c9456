"""The benchmark of templates runs both of its comparisons on the template of the example, and reads its own numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import templates


@pytest.mark.parametrize("part", templates.PARTS)
def test_both_sides_do_their_rounds(
    tmp_path: Path, part: str, capsys: pytest.CaptureFixture[str], python: str, monkeypatch
):
    monkeypatch.setattr(sys, "executable", python)
    numbers = tmp_path / "numbers.json"
    sizes = ["--rounds", "1", "--steps", "1", "--inference-steps", "1", "--samples", "2", "--size", "32"]
    templates.main(["--tiny", *sizes, "--only", part, "--json", str(numbers)])
    (row,) = json.loads(numbers.read_text())["results"]
    assert len(row["ours"]) == len(row["plain"]) == 1
    assert min(*row["ours"], *row["plain"]) > 0
    assert row["name"] in capsys.readouterr().out


def test_the_ratio_is_the_median_of_the_rounds():
    row = {"name": "a step", "ours": [1.0, 3.0, 2.0], "plain": [2.0, 2.0, 2.0]}
    assert templates.report({"results": [row]}).endswith("| a step | 2 s | 2 s | **1.000** |")


@pytest.mark.parametrize("tiny", [True, False])
def test_the_template_gets_the_sizes_of_the_model(tmp_path: Path, tiny: bool):
    templates.write_template(tmp_path / "template", tiny)
    text = (tmp_path / "template" / "model.py").read_text(encoding="utf-8")
    assert ("BLOCKS, HEADS, HEAD_DIM = 8, 8, 64" in text) is not tiny
