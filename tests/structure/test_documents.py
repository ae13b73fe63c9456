"""The commands in docs/ and examples/ work: those a CPU can run are run, of the others every flag is accepted."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.structure.documents import REPOSITORY, assert_is_accepted, blocks_of, documents, enter_root, run
from tests.structure.markdown import Block, shell_blocks, shortened

PAGES = [page for page in documents() if page != REPOSITORY / "README.md"]
WITH_COMMANDS = [page for page in PAGES if blocks_of(page)]


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def test_the_guides_and_the_examples_are_seen():
    assert {"docs/guides/getting_started.md", "examples/lora_qwen_image/README.md"} <= set(map(name_of, WITH_COMMANDS))


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_the_commands_of_a_document_work(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], python: str
):
    enter_root(tmp_path, monkeypatch)
    blocks = blocks_of(page)
    assert [block for block in blocks if block.commands] == blocks != []
    for block in blocks:
        for command in block.commands:
            if block.reason is None:
                run(command, capfd, python)
            else:
                with monkeypatch.context() as patches:
                    assert_is_accepted(command, patches)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_document_links_to_is_there(page: Path):
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


MODULE = re.compile(r"(?<![\w./~-])(?:tests/)?dsctl(?:_core)?/[\w/]+(?:\.(?:py|png))?|(?<![\w./])dsctl_core(?:\.\w+)+")


def missing_modules(text: str) -> list[str]:
    """Return the paths and dotted names of our packages in `text` that are no file, no folder and no name in one."""
    missing = []
    for found in MODULE.findall(text):
        path = REPOSITORY / found.replace(".py", "").replace(".", "/").rstrip("/")
        holder = path.parent / "__init__.py" if path.parent.is_dir() else path.parent.with_suffix(".py")
        defined = "/" not in found and holder.is_file() and path.name in holder.read_text(encoding="utf-8")
        if not ((REPOSITORY / found).is_file() or path.exists() or path.with_suffix(".py").is_file() or defined):
            missing.append(found)
    return missing


@pytest.mark.parametrize("page", [REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "README.md", *PAGES], ids=name_of)
def test_the_modules_that_a_document_names_are_there(page: Path):
    assert missing_modules(page.read_text(encoding="utf-8")) == []


def test_a_module_that_is_gone_is_found():
    gone = "`dsctl_core/pictures/`, dsctl_core.transfer, tests/dsctl_core/test_gone.py, dsctl/words.py"
    assert missing_modules(gone) == [
        "dsctl_core/pictures/",
        "dsctl_core.transfer",
        "tests/dsctl_core/test_gone.py",
        "dsctl/words.py",
    ]
    there = "dsctl_core/media/, dsctl_core.units.UnitRunner, `dsctl/out.py`, ~/.local/state/dsctl/trusted"
    assert missing_modules(there) == []


def test_a_block_is_read_as_a_shell_reads_it():
    text = "<!-- not run by the tests: a GPU -->\n```sh\na \\\n  b  # why\n# only a comment\n\nc\n```\n```sh\nd\n```\n"
    assert shell_blocks(text) == [Block(("a    b  # why", "c"), "a GPU"), Block(("d",), None)]


def test_a_command_is_shortened_without_changing_what_it_does():
    assert shortened("dsctl train sft --max-steps 300 --x y").split() == (
        ["dsctl", "train", "sft", "--x", "y", "--max-steps", "2", "--batch-size", "1"]
    )
    assert "step-2.safetensors" in shortened("dsctl infer --lora runs/a/step-300.safetensors --prompt p")
    assert shortened("dsctl models") == "dsctl models"


def test_a_command_with_a_wrong_flag_is_found(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
):
    enter_root(tmp_path, monkeypatch)
    with pytest.raises(AssertionError, match="unknown flag --colour"):
        run("dsctl models --colour", capfd, sys.executable)
    with pytest.raises(AssertionError, match="is refused"):
        assert_is_accepted("dsctl train sft --model tiny --lora-rnk 3", monkeypatch)
