"""The benchmark suite runs to its end, compares like with like, and writes what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
RUN = REPOSITORY / "benchmarks" / "run.py"


def run(*arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    command = [python, str(RUN), "--rounds", "1", "--steps", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(("part", "rows"), [("train", 2), ("infer", 1)])
def test_a_part_measures_both_sides_and_writes_its_section(python, tmp_path, part, rows):
    page, numbers = tmp_path / "page.md", tmp_path / "new" / "numbers.json"
    page.write_text("above\n<!-- results: written by benchmarks/run.py -->\nold\n<!-- end of results -->\nbelow\n")
    # One part in processes that import everything themselves, so that the memory is that of such a process.
    own = part == "infer"
    settings = ("--only", part, "--json", str(numbers), "--write", str(page))
    done = run(*settings, python=sys.executable if own else python)
    assert done.returncode == 0, done.stderr
    measured = json.loads(numbers.read_text())
    assert {"date", "cpu", "cores", "versions"} <= set(measured["machine"])
    assert len(measured["results"]) == rows
    for result in measured["results"]:
        assert min(*result["ours"], *result["plain"]) > 0
        assert min(result["ours_memory"], result["plain_memory"]) > (10**8 if own else 10**6)
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("\nbelow\n")
    assert "old" not in text
    assert text.count("\n| ") == rows + 1  # and the header


def test_a_page_without_the_marks_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "page.md").write_text("no marks\n")
    for name in ("page.md", "missing.md"):
        done = run("--json", str(tmp_path / "n.json"), "--write", str(tmp_path / name))
        assert done.returncode == 1
        assert f"{name} should hold each of these lines once" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]
    assert (tmp_path / "page.md").read_text() == "no marks\n"


def test_the_performance_page_has_the_section_that_is_written():
    text = (REPOSITORY / "docs" / "performance.md").read_text(encoding="utf-8")
    marks = [text.count(f"<!-- {mark} -->") for mark in ("results: written by benchmarks/run.py", "end of results")]
    assert marks == [1, 1]
