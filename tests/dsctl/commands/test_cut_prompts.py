"""Prompts that a model cuts: `validate --model` and `train` name their rows, before the model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dsctl.commands.spoiled import good, table
from tests.dsctl.running import Dsctl

LONG = "a red fox " * 400


@pytest.fixture(autouse=True)
def _data() -> None:
    good(Path("data"))
    table(Path("data"), "a.png,a dog", f"b.png,{LONG}", "c.png,two foxes", f"d.png,{LONG}x")


def test_validate_names_the_rows_with_length_and_limit(dsctl: Dsctl):
    run = dsctl("dataset", "validate", "data", "--model", "tiny", "--json")
    problems = [problem for problem in run.json["problems"] if problem["kind"] == "cut caption"]
    assert [(problem["row"], problem["level"]) for problem in problems] == [(2, "warning"), (4, "warning")]
    first = problems[0]["message"]
    assert first.startswith("data/metadata.csv row 2 (line 3): the prompt is 1")
    assert first.endswith(" tokens, and tiny takes 1024: its end is cut")
    assert "shorten the caption" in problems[0]["hint"]
    assert run.code == 0
    assert dsctl("dataset", "validate", "data", "--model", "tiny", "--strict").code == 1
    without_a_model = dsctl("dataset", "validate", "data", "--json").json["summary"]
    assert without_a_model["rows"] == 4
    assert "cut caption" not in without_a_model["problems_by_kind"]


def test_what_cannot_be_counted_without_a_download_is_said(dsctl: Dsctl):
    run = dsctl("dataset", "validate", "data", "--model", "qwen-image", "--json")
    (note,) = run.json["summary"]["notes"]
    assert note.startswith("2 long prompts may be cut: the tokenizer of qwen-image")
    assert note in dsctl("dataset", "validate", "data", "--model", "qwen-image").out
    table(Path("data"), "a.png,a dog")
    assert dsctl("dataset", "validate", "data", "--model", "qwen-image", "--json").json["summary"]["notes"] == []


@pytest.mark.parametrize("command", ["train", "cache"])
def test_training_and_the_cache_name_the_row(dsctl: Dsctl, model: Path, command: str):
    options = ["--lora-rank", "2", "--max-steps", "1"] if command == "train" else []
    common = ["--dataset-base-path", "data", "--output-path", "out", "--device", "cpu", *options]
    run = dsctl(command, "--model", str(model), *common)
    assert run.code == 0, run.err
    assert "Dataset: table metadata.csv of 4 rows" in run.err
    lines = [line for line in run.err.splitlines() if "its end is cut" in line]
    assert len(lines) == 2
    assert "data/metadata.csv row 2 (line 3): the prompt is 1" in lines[0]
    assert "takes 1024" in lines[0]
