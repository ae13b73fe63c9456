"""The README's commands work: as a person types them, on the embedded model."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.structure.documents import (
    REPOSITORY,
    assert_is_accepted,
    assert_make_knows,
    blocks_of,
    enter_root,
    run_in_shell,
)
from tests.structure.markdown import words

README = REPOSITORY / "README.md"


def test_the_readme_shows_the_two_words_and_a_command_of_each_kind():
    commands = [command for block in blocks_of(README) for command in block.commands]
    for start in ("make demo", "make test", "dsctl train", "dsctl infer"):
        assert any(command.startswith(start) for command in commands), start


def test_the_commands_of_the_readme_work(python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    enter_root(tmp_path, monkeypatch)
    interpreter = sys.executable  # whose `dsctl` is the one that is installed; of the first command only, for time
    for block in blocks_of(README):
        for command in block.commands:
            if block.reason is not None:
                assert_is_accepted(command, monkeypatch)
            elif words(command)[0] == "make":
                assert_make_knows(words(command)[1:])
            else:
                run_in_shell(command, interpreter)
                interpreter = python
    assert interpreter == python, "no command was run"


def test_what_the_readme_links_to_is_there():
    text = README.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    links += re.findall(r'(?:src|href)="([^"#:]+)"', text)
    assert [link for link in links if not (REPOSITORY / link).exists()] == []
