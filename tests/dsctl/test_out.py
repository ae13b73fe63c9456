"""Results go to stdout, everything else to stderr, and the libraries underneath keep silent."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from dsctl import out
from dsctl_core.progress import NoProgress
from tests.dsctl.running import Dsctl

LOUD = """
import logging, os, sys, warnings
import dsctl_core.commands.doctor
from dsctl.app import main

def examine(options):
    logging.getLogger("transformers").warning("noise from logging")
    warnings.warn("noise from warnings")
    logging.getLogger("dsctl_core.pipeline").warning("a word of ours")
    print(os.environ.get("TQDM_DISABLE"), os.environ.get("DIFFUSERS_VERBOSITY"), file=sys.stderr)
    return dsctl_core.commands.doctor.Report({}, {}, {}, {}, {}, {}, [])

dsctl_core.commands.doctor.examine = examine
sys.exit(main(sys.argv[1:]))
"""


def printed_by(repository: Path, *flags: str) -> tuple[str, str]:
    """Return stdout and stderr of a command during which libraries make noise."""
    clean = {name: value for name, value in os.environ.items() if name not in out.SILENCE}
    command = [sys.executable, "-c", LOUD, "doctor", *flags]
    run = subprocess.run(command, cwd=repository, env=clean, capture_output=True, text=True, check=True)
    return run.stdout, run.stderr


def test_the_noise_of_libraries_is_silenced_but_a_word_of_ours_is_shown(repository: Path):
    assert printed_by(repository) == ("no problem found\n", "warning: a word of ours\n1 error\n")


def test_with_verbose_the_libraries_are_heard(repository: Path):
    stdout, stderr = printed_by(repository, "--verbose")
    assert stdout == "no problem found\n"
    for heard in ("noise from logging", "noise from warnings", "a word of ours", "None None"):
        assert heard in stderr


def test_with_quiet_there_is_the_result_and_nothing_else(repository: Path):
    assert printed_by(repository, "--quiet") == ("no problem found\n", "1 error\n")


def test_with_json_stdout_is_one_object_and_the_rest_is_on_stderr(repository: Path):
    stdout, stderr = printed_by(repository, "--json")
    assert json.loads(stdout)["problems"] == []
    assert "a word of ours" in stderr


def test_a_result_is_a_title_and_its_values(capsys: pytest.CaptureFixture[str]):
    with out.session([]):
        out.result(
            "Trained", checkpoint=Path("o/step-3.safetensors"), final_loss=0.123456, nothing=None, files=["a", "b"]
        )
    assert capsys.readouterr().out.splitlines() == [
        "Trained",
        "  checkpoint  o/step-3.safetensors",
        "  final loss  0.1235",
        "  files       a, b",
    ]


def test_with_json_a_result_keeps_every_value(capsys: pytest.CaptureFixture[str]):
    with out.session(["--json"]):
        out.result("Trained", checkpoint=Path("o"), final_loss=0.123456, grid=None)
    assert json.loads(capsys.readouterr().out) == {"checkpoint": "o", "final_loss": 0.123456, "grid": None}


def test_words_after_two_dashes_are_no_flags(capsys: pytest.CaptureFixture[str]):
    with out.session(["--", "--json"]):
        out.show({"a": 1}, ["plain"])
    assert capsys.readouterr().out == "plain\n"


def test_quiet_makes_progress_silent():
    with out.session(["--quiet"]):
        assert isinstance(out.progress(), NoProgress)


def test_progress_goes_to_stderr_and_is_the_same_throughout(capsys: pytest.CaptureFixture[str]):
    with out.session([]):
        assert out.progress() is out.progress()
        out.progress().note("Loading")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "Loading\n")


def test_a_session_leaves_nothing_behind(dsctl: Dsctl):
    handlers = [list(logging.getLogger(name).handlers) for name in (None, "dsctl_core")]
    filters = list(warnings.filters)
    assert dsctl("models").code == 0
    assert [list(logging.getLogger(name).handlers) for name in (None, "dsctl_core")] == handlers
    assert warnings.filters == filters


def test_errors_are_coloured_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    with out.session([]):
        out.error("wrong", "right")
    monkeypatch.setenv("NO_COLOR", "1")
    with out.session([]):
        out.error("wrong", "right")
    coloured = "\x1b[31merror:\x1b[0m wrong\n\x1b[36mhint:\x1b[0m right\n"
    assert capsys.readouterr().err == coloured + "error: wrong\nhint: right\n"
