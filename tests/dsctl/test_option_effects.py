"""Every option of every command does something: with another value the outcome is another, or it is refused.

The options are those of the declarations that the flags are made of. One that is added must change what its command
hands on, prints or writes; or `tests/effects/values.py` says why not.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from dsctl.app import COMMANDS as TABLE
from dsctl.app import main
from dsctl_core.options import Options
from dsctl_core.options.messages import is_positional
from tests.cases import try_each
from tests.effects import spies
from tests.effects.described import tensor_digest
from tests.effects.idle import IdleOptions
from tests.effects.materials import write_materials
from tests.effects.tries import Command, Try, other_value
from tests.effects.values import COMMANDS, words_of

CHANGING = ("seconds", "freed_bytes", "modelspec.date")  # fields of results that differ from run to run


def commands(table: Any, path: str = "") -> Iterator[tuple[str, type[Options]]]:
    """Yield every command with its options."""
    for name, (target, _) in table.items():
        if isinstance(target, dict):
            yield from commands(target, f"{path}{name} ")
            continue
        module, _, function = target.partition(":")
        command = getattr(importlib.import_module(module), function)
        yield f"{path}{name}", next(iter(get_type_hints(command.__wrapped__).values()))


OPTIONS = dict(commands(TABLE))


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_materials(tmp_path_factory.mktemp("materials"))


class Outcomes:
    """Runs command lines among the materials, and returns what came of them."""

    def __init__(self, records: spies.Records, capsys: pytest.CaptureFixture[str]) -> None:
        self.records, self.capsys = records, capsys
        self.there = set(Path().rglob("*"))
        self.kept: dict[tuple[str, ...], Any] = {}

    def of(self, command: str, given: dict[str, Any]) -> tuple[int, Any]:
        """Return the exit code, and all that a run of `command` with the options `given` printed, wrote and handed on.

        What it wrote is removed.
        """
        options = OPTIONS[command].flat_fields()
        words = [*command.split(), "--json"]
        for name, value in given.items():
            words += words_of(name, value, is_positional(options[name]))
        if tuple(words) not in self.kept:
            self.kept[tuple(words)] = self._run(words)
        return self.kept[tuple(words)]

    def _run(self, words: list[str]) -> tuple[int, Any]:
        self.records.clear()
        self.capsys.readouterr()
        code = main(words)
        printed = self.capsys.readouterr()
        written = sorted(set(Path().rglob("*")) - self.there, reverse=True)
        files = {str(path): digest(path) for path in written if path.is_file()}
        for path in written:
            path.rmdir() if path.is_dir() else path.unlink()
        return code, (shown(printed.out), error_of(printed.err), files, list(self.records))


def shown(out: str) -> Any:
    """Return the result of a command without what the clock says."""
    try:
        result = json.loads(out)
    except ValueError:
        return out
    return {name: value for name, value in result.items() if name not in CHANGING}


def error_of(text: str) -> list[str]:
    """Return the lines of an error, which are not to be told apart by where this test runs."""
    return [line for line in text.splitlines() if line.startswith(("error:", "hint:"))]


def digest(path: Path) -> Any:
    """Return what is in a file, without what only tells how it was made."""
    if path.suffix == ".png":
        return Image.open(path).tobytes()
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            told = {name: text for name, text in (file.metadata() or {}).items() if name not in CHANGING}
        return told, {name: tensor_digest(tensor) for name, tensor in load_file(path).items()}
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def outcomes(
    materials: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], python: str
) -> Outcomes:
    monkeypatch.chdir(materials)
    monkeypatch.setattr(sys, "executable", python)  # which `template check` runs
    monkeypatch.setenv("XDG_STATE_HOME", str(materials.parent / "state"))
    return Outcomes(spies.install(monkeypatch), capsys)


def test_every_command_is_tried():
    assert OPTIONS.keys() == COMMANDS.keys()
    for name, command in COMMANDS.items():
        unknown = {*command.base, *command.tries, *command.same} - OPTIONS[name].flat_fields().keys()
        assert not unknown, name


def tried(command: Command, name: str, options: type[Options]) -> Try:
    """Return what to try for an option: what is listed, else a value that follows from its declaration."""
    listed = command.tries.get(name)
    if isinstance(listed, Try):
        return listed
    value = other_value(options.flat_fields()[name]) if listed is None else listed
    assert value is not None, f"give a value of {name} in tests/effects/values.py"
    return Try(value)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_changes_the_outcome_or_is_refused(name: str, outcomes: Outcomes):
    command, options = COMMANDS[name], OPTIONS[name]
    code, plain = outcomes.of(name, command.base)
    assert code == 0, plain

    def check(option: str) -> None:
        changed = changes(outcomes, name, option, tried(command, option, options))
        assert changed or option in command.same, f"{option} changes nothing, and no reason is given for that"

    try_each([(option,) for option in options.flat_fields()], check, count=len(options.flat_fields()))


def changes(outcomes: Outcomes, name: str, option: str, case: Try) -> bool:
    """Return whether what came of a command is another with the option than without; one of both must succeed."""
    base = COMMANDS[name].base
    without = outcomes.of(name, {**base, **case.beside})
    given = outcomes.of(name, {**base, **case.beside, **case.also, option: case.value})
    assert 0 in (without[0], given[0]), f"both fail: {given[1]}"
    assert not any("bug in dsctl" in line for line in (*without[1][1], *given[1][1])), given[1][1]
    return given != without


def test_an_option_without_effect_is_noticed(outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(TABLE, "speak", ("tests.effects.idle:speak", "Say something."))
    monkeypatch.setitem(OPTIONS, "speak", IdleOptions)
    monkeypatch.setitem(COMMANDS, "speak", Command({}))
    assert changes(outcomes, "speak", "loud", Try(True))
    assert not changes(outcomes, "speak", "fast", Try(True))
    with pytest.raises(pytest.fail.Exception, match="fast changes nothing"):
        test_an_option_changes_the_outcome_or_is_refused("speak", outcomes)
