"""The manual page and completion have every command and every option, because both are made of the declarations."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from dsctl.app import COMMANDS, main
from dsctl_core.options import Options
from dsctl_core.options.messages import is_positional, spelled

PAGE = Path(__file__).parents[2] / "docs" / "man" / "dsctl.1"
REQUESTS = {".TH", ".SH", ".SS", ".TP", ".PP", ".B", ".I", ".RI"}


def commands(table: Any, path: str = "dsctl") -> Iterator[tuple[str, type[Options]]]:
    for name, (target, _) in table.items():
        if isinstance(target, dict):
            yield from commands(target, f"{path} {name}")
        else:
            module, _, function = target.partition(":")
            command = getattr(importlib.import_module(module), function)
            yield f"{path} {name}", next(iter(get_type_hints(command.__wrapped__).values()))


def test_the_manual_page_has_every_command_with_every_flag():
    text = PAGE.read_text(encoding="utf-8")
    comment, text = text.split("\n", 1)
    assert comment.startswith('.\\" ')
    assert {line.split()[0] for line in text.splitlines() if line.startswith((".", "'"))} == REQUESTS
    assert re.findall(r"\\[^\\e&fB-]|\\f[^BIR]", text) == []
    sections = dict(re.findall(r"^\.SS (.*)\n((?:(?!\.S[SH] ).*\n)*)", text.replace("\\-", "-"), re.MULTILINE))
    declared = dict(commands(COMMANDS))
    assert list(sections) == list(declared) and len(declared) > 15
    missing = [
        (name, spelled(option, field))
        for name, options in declared.items()
        for option, field in options.flat_fields().items()
        if f"\\f{'I' if is_positional(field) else 'B'}{spelled(option, field)}\\fR" not in sections[name]
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("dsctl mer", ["merge-lora"]),
        ("dsctl lora ex", ["extract"]),
        ("dsctl report --se", ["--serve"]),
        ("dsctl train --lora-r", ["--lora-rank"]),
    ],
)
def test_a_shell_completes_commands_and_flags(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str, completed: list[str]
):
    monkeypatch.setenv("_DSCTL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    assert main([]) == 0
    assert capsys.readouterr().out.split() == completed
