"""`--num-processes` runs the same command in several processes that speak with one voice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dsctl import launch, out, processes
from dsctl.errors import Outcome, explained, report
from dsctl_core.errors import DsctlError, Stopped
from dsctl_core.options.processes import ProcessCountOptions
from dsctl_core.training.distributed.launch import Ended
from tests.dsctl.running import Dsctl

COMMON = ("train", "--dataset-base-path", "data", "--max-steps", "2", "--device", "cpu", "--no-cache")
TRAIN = (*COMMON, "--lora-rank", "2")


def dsctl_process(
    python: str, repository: Path, *words: object, start: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", *start, "dsctl", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.usefixtures("files")
def test_two_processes_train_and_report_once(python: str, repository: Path, model: Path):
    done = dsctl_process(
        python, repository, *TRAIN, "--model", model, "--output-path", "out", "--num_processes", 2, "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 2
    assert done.stderr.count("Loading") == 1
    run = json.loads(Path("out/run.json").read_text())
    assert (run["options"]["num_processes"], run["hardware"]["processes"]) == (2, 2)
    given = {"model", "dataset_base_path", "max_steps", "device", "cache", "lora_rank", "output_path", "num_processes"}
    assert set(run["given"]) == given


@pytest.mark.usefixtures("files")
def test_what_every_process_finds_wrong_is_said_once_with_its_exit_code(python: str, repository: Path, model: Path):
    words = ("--model", model, "--output-path", "out", "--num-processes", 2, "--trainable-models", "dit.nope")
    done = dsctl_process(python, repository, *COMMON, *words, "--json")
    assert done.returncode == 2, done.stderr
    assert list(json.loads(done.stdout)) == ["error", "hint"]
    assert done.stderr.count("error: unknown module of dit 'nope'") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("files")
def test_accelerate_launch_starts_dsctl_too(python: str, repository: Path, model: Path, tmp_path: Path):
    config = tmp_path / "two.yaml"
    text = (repository / "examples" / "accelerate" / "fsdp2.yaml").read_text()
    config.write_text(text.replace("num_processes: 8", "num_processes: 2").replace("bf16", '"no"'))
    launch = ("accelerate.commands.launch", "--config_file", str(config), "-m")
    words = (*TRAIN, "--model", model, "--output-path", "out", "--json")
    done = dsctl_process(python, repository, *words, start=launch)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 2
    given = {"model", "dataset_base_path", "max_steps", "device", "cache", "lora_rank", "output_path"}
    assert set(json.loads(Path("out/run.json").read_text())["given"]) == given


@pytest.mark.usefixtures("files")
def test_weights_without_a_gradient_in_two_processes_are_refused_by_the_option(
    python: str, repository: Path, model: Path
):
    once = [word.replace("2", "1") for word in COMMON]  # in one step, though torch finds out in the second
    words = (*once, "--model", model, "--output-path", "out", "--num-processes", 2)
    done = dsctl_process(python, repository, *words, "--trainable-models", "dit", "--no-find-unused-parameters")
    assert done.returncode == 2, done.stderr
    assert (
        done.stderr.count("error: --no-find-unused-parameters is given, but some trained weights get no gradient") == 1
    )
    assert "leave it out" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["train", "cache"])
def test_a_second_launcher_is_refused(dsctl: Dsctl, monkeypatch: pytest.MonkeyPatch, command: str):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    more = ("--lora-rank", "2") if command == "train" else ()
    run = dsctl(
        command, "--model", "tiny", "--dataset-base-path", "d", "--output-path", "o", "--num-processes", 3, *more
    )
    problem, hint = run.fault(2)
    assert problem == "--num-processes 3 is given, but a launcher has started several processes already"
    assert "leave it out" in hint


def test_a_number_and_a_file_are_refused_together(dsctl: Dsctl):
    words = ("--num-processes", 2, "--accelerate-config", "a.yaml")
    problem, _ = dsctl(*TRAIN, "--model", "tiny", "--output-path", "out", *words).fault(2)
    assert problem == "--num-processes and --accelerate-config are both given"


def test_the_error_that_the_others_follow_from_is_the_one_that_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(processes.FOLDER, str(tmp_path))
    for rank, code, problem, expected in ((0, 1, "Connection closed by peer", False), (1, 2, "the reason", True)):
        monkeypatch.setenv("RANK", str(rank))
        assert processes.tell(code, problem, "a hint", expected=expected)
    monkeypatch.setenv("RANK", "2")
    assert processes.tell(0, None, None, expected=True)
    assert [each.problem for each in processes.endings(tmp_path)] == ["the reason", "Connection closed by peer", None]


CLOSED = "[/third_party/gloo/transport/tcp/pair.cc:538] Connection closed by peer"
KILLED = "process 1 was killed by SIGKILL (main memory may have been full)"


@pytest.mark.parametrize(
    ("command", "error", "expected", "said", "hint"),
    [
        ("train", RuntimeError(CLOSED), False, KILLED, "--resume latest"),
        ("train", Stopped("stopped by SIGTERM"), True, KILLED, "--resume latest"),
        ("cache", RuntimeError(CLOSED), False, KILLED, "run the command again"),
        ("train", DsctlError("no space left", hint="free some"), True, "no space left", "free some"),
    ],
)
def test_a_killed_process_is_the_reason_and_what_the_others_lost_by_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, command: str, error: Exception, expected: bool,
    said: str, hint: str,
):  # fmt: skip
    def run_in_processes(*_: Any, environment: dict[str, str], **others: Any) -> Ended:
        with monkeypatch.context() as inside:
            inside.setenv(processes.FOLDER, environment[processes.FOLDER])
            report(error)
        return Ended(rank=1, exit_code=-signal.SIGKILL)

    monkeypatch.setattr("dsctl_core.training.distributed.launch.run_in_processes", run_in_processes)
    with out.session([]), launch.given([command]), Outcome() as outcome:
        launch.in_processes(ProcessCountOptions(num_processes=2), cpu=True)
    lines = capsys.readouterr().err.splitlines()
    assert (outcome.code, lines[0]) == (1, f"error: {said}")
    assert len(lines) == 2 and hint in lines[1]


@pytest.mark.parametrize(
    ("error", "launched", "said"),
    [
        (RuntimeError(CLOSED), True, "another process of this run cannot be reached"),
        (RuntimeError(CLOSED), False, "RuntimeError"),
        (
            RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
            False,
            "a process that reads data has ended",
        ),
    ],
)
def test_a_process_that_is_gone_is_no_bug(monkeypatch: pytest.MonkeyPatch, error: Exception, launched: bool, said: str):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1") if launched else monkeypatch.delenv(name, raising=False)
    problem, hint, _ = explained(error)
    assert problem.startswith(said) and ("bug" in str(hint)) == (said == "RuntimeError")


def test_only_the_first_process_tells_of_its_progress(dsctl: Dsctl, monkeypatch: pytest.MonkeyPatch):
    for rank, told in (("0", "a note\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr("dsctl_core.commands.doctor.examine", lambda options: out.note("a note") or 1 / 0)
        run = dsctl("doctor")
        assert run.err.startswith(told + "error: ")
