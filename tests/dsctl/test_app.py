"""The table of commands: light, with near misses, and exit codes that mean something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsctl.app import COMMANDS, LazyCommand
from dsctl_core.errors import DsctlError
from dsctl_core.version import __version__
from tests.dsctl.running import Dsctl
from tests.structure.rules import HEAVY

CPU_SECONDS = 0.25  # of a machine that is not busy with anything else
LIBRARIES = "import typer; from pydantic import BaseModel, Field, model_validator"


def targets(table: dict = COMMANDS) -> list[tuple[str, str]]:
    """Return (function, summary) of every command, those of tables inside tables too."""
    found = []
    for target, summary in table.values():
        found += [(target, summary)] if isinstance(target, str) else targets(target)
    return found


def cpu_seconds(words: list[str], repository: Path, bytecode: Path) -> float:
    """Return the CPU time, user and system, of one run of Python, which keeps its bytecode as an installed one does."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with subprocess.Popen(
        [sys.executable, *words],
        cwd=repository,
        env={**environment, "PYTHONPYCACHEPREFIX": str(bytecode)},
        stdout=subprocess.DEVNULL,
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["infer", "--help"]], ids=" ".join)
def test_help_takes_little_cpu_time(words: list[str], repository: Path, tmp_path: Path):
    runs = [
        [cpu_seconds(c, repository, tmp_path) for c in (["-m", "dsctl", *words], ["-c", LIBRARIES])] for _ in range(5)
    ]
    help_seconds, libraries = (min(side) for side in zip(*runs, strict=True))
    # A busy machine makes every process take more: then what the libraries alone take says how much is little.
    assert help_seconds <= max(CPU_SECONDS, 2 * libraries)


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["train", "--help"], ["infer", "--help"], ["models"], ["train", "--lora-rnk", "1"]],
    ids=" ".join,
)
def test_help_versions_lists_and_usage_errors_import_nothing_heavy(words: list[str], repository: Path):
    code = f"import json, sys; from dsctl.app import main; main({words}); print(json.dumps(list(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    loaded = set(json.loads(run.stdout.splitlines()[-1]))
    assert "dsctl.app" in loaded
    assert loaded & (HEAVY | {"rich"}) == set()


def test_every_command_of_the_design_so_far_is_there():
    assert {"train", "infer", "models", "doctor"} <= set(COMMANDS)


@pytest.mark.parametrize(("target", "summary"), targets())
def test_a_commands_summary_begins_as_its_function_does(target: str, summary: str):
    import importlib

    module, _, function = target.partition(":")
    described = getattr(importlib.import_module(module), function).__doc__
    assert described.startswith(summary.rstrip("."))


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_lists_every_command(dsctl: Dsctl, words: list[str]):
    run = dsctl(*words)
    assert run.code == 0
    for name, (_, summary) in COMMANDS.items():
        assert f"{name} " in run.out
        assert summary in run.out


@pytest.mark.parametrize("words", [["train"], ["models", "show"]])
def test_a_commands_flags_are_not_those_of_the_table_that_it_is_in(dsctl: Dsctl, words: list[str]):
    assert "--install-completion" in dsctl("--help").out
    assert "--install-completion" not in dsctl(*words, "--help").out
    assert dsctl(*words, "--help").out.count("--help ") == 1
    assert dsctl(*words[:1], "--help").code == 0


def test_every_name_of_the_options_is_found_where_it_is_declared():
    import dsctl_core.options

    assert all(getattr(dsctl_core.options, name) for name in dsctl_core.options.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = dsctl_core.options.Nothing


def test_the_version_is_shown(dsctl: Dsctl):
    assert (dsctl("--version").out, dsctl("--version").code) == (f"dsctl {__version__}\n", 0)


def test_a_misspelt_command_is_answered_with_the_near_miss(dsctl: Dsctl):
    assert dsctl("trian").fault(2) == ("unknown command 'trian'", "did you mean `dsctl train`?")
    assert dsctl("models", "shwo").fault(2) == ("unknown command 'shwo'", "did you mean `dsctl models show`?")


def test_a_command_unlike_any_is_answered_with_all_of_them(dsctl: Dsctl):
    assert dsctl("frobnicate").fault(2)[1] == f"known: {', '.join(COMMANDS)}"


def test_a_flag_before_the_command_is_told_where_it_belongs(dsctl: Dsctl):
    run = dsctl("--json", "models")
    problem, hint = run.json["error"], run.json["hint"]
    assert problem == "unknown flag --json"
    assert "after its name" in hint


def test_a_failed_run_exits_1_with_the_error_and_its_hint(dsctl: Dsctl, monkeypatch: pytest.MonkeyPatch):
    def fail(options: object) -> None:
        raise DsctlError("no\nluck", hint="try\nagain")

    monkeypatch.setattr("dsctl_core.commands.doctor.examine", fail)
    assert dsctl("doctor").fault(1) == ("no luck", "try again")


def test_with_json_an_error_is_an_object_on_stdout_too(dsctl: Dsctl):
    run = dsctl("train", "--lora-rank", "none", "--json")
    assert run.code == 2
    assert run.err == f"error: {run.json['error']}\nhint: {run.json['hint']}\n"
    assert "--lora-rank is 'none'" in run.json["error"]


def test_a_mistake_of_ours_is_one_line_and_says_how_to_report_it(dsctl: Dsctl, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dsctl_core.commands.doctor.examine", lambda options: {}["missing"])
    problem, hint = dsctl("doctor").fault(1)
    assert problem == "KeyError: 'missing'"
    assert "DSCTL_DEBUG=1" in hint


def test_a_traceback_is_shown_when_asked_for(dsctl: Dsctl, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DSCTL_DEBUG", "1")
    monkeypatch.setattr("dsctl_core.commands.doctor.examine", lambda options: {}["missing"])
    run = dsctl("doctor")
    assert run.code == 1
    assert "Traceback" in run.err
    assert "error: KeyError: 'missing'" in run.err


def test_ctrl_c_exits_130(dsctl: Dsctl, monkeypatch: pytest.MonkeyPatch):
    def interrupt(options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dsctl_core.commands.doctor.examine", interrupt)
    run = dsctl("doctor")
    assert (run.code, run.out, run.err) == (130, "", "interrupted\n")


def test_an_error_of_the_system_names_the_file(dsctl: Dsctl, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "dsctl_core.commands.doctor.examine", lambda options: Path("not/here").read_text(encoding="utf-8")
    )
    assert dsctl("doctor").fault(1)[0] == "not/here: No such file or directory"


def test_a_reader_that_goes_away_is_no_error(repository: Path):
    command = f"{sys.executable} -m dsctl train --help | head -n 1"
    run = subprocess.run(["bash", "-c", command], cwd=repository, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("Usage: dsctl train")
    assert run.stderr == ""


@pytest.mark.parametrize(
    ("words", "offered"),
    [("dsctl tr", "train"), ("dsctl models s", "show"), ("dsctl train --lora-r", "--lora-rank")],
)
def test_the_shell_completes_commands_and_flags(words: str, offered: str, repository: Path):
    completing = {
        "_DSCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    run = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'dsctl'; from dsctl.app import main; sys.exit(main())"],
        cwd=repository,
        env={**os.environ, **completing},
        capture_output=True,
        text=True,
        check=False,
    )
    assert offered in run.stdout.split()


def test_a_lazy_command_has_its_summary_before_its_module_is_imported():
    assert LazyCommand("x", "no.such.module:function", "Does x.").get_short_help_str() == "Does x."


def test_at_the_end_of_the_process_nothing_walks_through_the_libraries_objects(repository: Path):
    code = (
        "import atexit, gc, sys; from dsctl.app import main; sys.argv = ['dsctl', '--version'];"
        "atexit.register(lambda: print(gc.get_freeze_count() > 1000)); main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True"
