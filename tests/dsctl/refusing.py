"""Command lines that would work, to be spoiled one by one, and the check that a refusal leaves everything as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.dsctl.running import Run

BASE: dict[str, dict[str, str]] = {
    "train": {"dataset_base_path": "data", "lora_rank": "2", "max_steps": "1", "output_path": "out", "device": "cpu"},
    "infer": {"prompt": "a cat", "height": "32", "width": "32", "num_inference_steps": "1", "output": "out/a.png"},
}


def written() -> dict[Path, bytes | None]:
    """Return everything in the working folder, with its content."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(Path().rglob("*"))}


def words(command: str, folder: Path, /, **changes: str | None) -> list[str]:
    """Return a command line that would work, with `changes`; None takes an option away."""
    values = {"model": str(folder), **BASE[command], **changes}
    task = [values.pop("task") or ""] if "task" in values else []
    given = {name: value for name, value in values.items() if value is not None}
    return [command, *task, *(f"--{name.replace('_', '-')}={value}" for name, value in given.items())]


def refused(run: Callable[[], Run], code: int) -> tuple[str, str]:
    """Run something that must fail, and return its error and hint; it must leave everything as it was."""
    before = written()
    fault = run().fault(code)
    assert written() == before
    return fault
