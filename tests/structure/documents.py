"""Runs or reads the commands that a document shows, in a folder that looks like the repository's root."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from dsctl.app import main
from dsctl_core.errors import DsctlError
from tests.structure.markdown import Block, shell_blocks, shortened, words

REPOSITORY = Path(__file__).parents[2]
RUN_TOML = 'model = "tiny"\ndataset_base_path = "photos"\nlora_rank = 16\noutput_path = "runs/photos"\n'


def documents() -> list[Path]:
    """Return every document that was written by hand."""
    pages = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "examples").rglob("*.md")]
    return sorted(page for page in pages if "reference" not in page.parts)


def blocks_of(page: Path) -> list[Block]:
    """Return the shell blocks of a document."""
    return shell_blocks(page.read_text(encoding="utf-8"))


def enter_root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `folder` look like the repository's root and go there: what the commands write stays in it."""
    for name in ("dsctl", "dsctl_core", "docs", "examples"):
        (folder / name).symlink_to(REPOSITORY / name)
    # Such as `dsctl init` writes, for commands that are read and not run.
    (folder / "run.toml").write_text(RUN_TOML, encoding="utf-8")
    monkeypatch.chdir(folder)


def run(command: str, capfd: pytest.CaptureFixture[str], python: str) -> None:
    """Run one command of a document in this process, a script by `python`, with few steps; it must succeed."""
    kind, *rest = words(shortened(command))
    if kind == "make":
        assert_make_knows(rest)
        return
    if kind == "python":
        subprocess.run([python, *rest], check=True)
        return
    assert kind == "dsctl", f"{command!r} is neither dsctl, nor python, nor make: give a reason not to run it"
    capfd.readouterr()
    code = main(rest)
    shown = capfd.readouterr()
    assert code == 0, f"{command}\n{shown.err}"
    _, redirect, target = command.partition(" > ")
    if redirect:
        Path(target.strip()).write_text(shown.out, encoding="utf-8")


def assert_make_knows(targets: list[str]) -> None:
    """Require that the Makefile has each of these words."""
    known = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(targets) <= set(known)


def assert_is_accepted(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Require that a command's flags and values are accepted, up to where the work would begin."""
    kind, *rest = words(command.replace("accelerate launch -m dsctl", "dsctl"))
    if kind == "make":
        assert_make_knows(rest)
        return
    if kind == "python":
        assert (REPOSITORY / rest[0]).is_file(), f"{command!r} names no script"
        return
    assert kind == "dsctl", f"{command!r} is neither dsctl, nor python, nor make"
    accepted = []

    def begin(options: object, *_: object, **__: object) -> None:
        accepted.append(options)
        raise DsctlError("far enough")

    for name in ("train.train", "train.dry_run", "cache.make_cache", "cache.dry_run", "template.check"):
        monkeypatch.setattr(f"dsctl_core.commands.{name}", begin)
    monkeypatch.setattr("dsctl_core.training.distributed.launch.run_in_processes", begin)
    monkeypatch.setattr("dsctl_core.commands.infer.infer", begin)
    monkeypatch.setattr("dsctl_core.commands.report.serve", begin)
    monkeypatch.setattr("dsctl_core.commands.dataset.validate", begin)
    for name in ("init.init", "import_config.import_config", "report.report"):
        monkeypatch.setattr(f"dsctl_core.commands.{name}", begin)
    for name in ("annotate.annotate", "caption.caption"):
        monkeypatch.setattr(f"dsctl_core.commands.{name}", begin)
    for name in ("download.download", "upload.upload", "merge_lora.merge", "lora.extract_lora"):
        monkeypatch.setattr(f"dsctl_core.commands.{name}", begin)
    monkeypatch.setattr("dsctl_core.commands.template.pack", begin)
    monkeypatch.setattr("dsctl_core.commands.template.upload", begin)
    for name in ("info", "convert", "resize"):
        monkeypatch.setattr(f"dsctl_core.commands.lora.{name}", begin)
    main(rest)
    assert accepted, f"{command!r} is refused"


def run_in_shell(command: str, python: str) -> None:
    """Run one command of a document as a person would, with few steps; it must succeed.

    The programs `python` and `dsctl` are those in the folder of the interpreter `python`.
    """
    path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        shortened(command),
        shell=True,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
