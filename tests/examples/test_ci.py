"""The workflow for CI works: its steps are run as the runner runs them, and its check fails where it should."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.structure.documents import REPOSITORY, enter_root, run_in_shell

EXAMPLE = REPOSITORY / "examples" / "ci"


def workflow() -> dict[str, Any]:
    job: dict[str, Any] = yaml.safe_load((EXAMPLE / "train.yml").read_text(encoding="utf-8"))["jobs"]["train"]
    return job


def test_the_steps_of_the_workflow_work(python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    enter_root(tmp_path, monkeypatch)
    for name, value in workflow()["env"].items():
        monkeypatch.setenv(name, value)
    install, *steps = [step["run"] for step in workflow()["steps"] if "run" in step]
    assert install.startswith("pip install ")
    commands = [line for step in steps for line in step.splitlines()]
    assert {command.split()[1] for command in commands} >= {"dataset", "cache", "train", "infer", "report"}
    for command in commands:
        run_in_shell(command, python)
    kept = next(step["with"] for step in workflow()["steps"] if step.get("uses", "").startswith("actions/cache"))
    assert (tmp_path / kept["path"]).is_dir()
    assert workflow()["env"]["DATASET"] in kept["key"]


@pytest.mark.parametrize(
    ("losses", "same", "problem"),
    [([0.5, 0.4], True, "changes nothing"), ([0.5, None], False, "not finite"), ([0.5], False, "1 steps of 2")],
)
def test_the_check_fails_where_it_should(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], losses: list, same: bool, problem: str
):
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses, 1)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "run.json").write_text(json.dumps({"options": {"max_steps": 2}}))
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), "red" if same else "blue").save(tmp_path / "b.png")
    check = runpy.run_path(str(EXAMPLE / "check.py"))["main"]
    assert check(tmp_path, tmp_path / "a.png", tmp_path / "b.png") == 1
    assert problem in capsys.readouterr().err
