"""Claim the output folder of a run, before anything long starts, so that two runs never share it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import prepare_folder
from dsctl_core.files.json import read_line
from dsctl_core.training.state.folder import state_folders

RUN_FILE, METRICS_FILE = "run.json", "metrics.jsonl"


def refuse_used(folder: Path) -> None:
    """Raise a DsctlError if `folder` is a file or already holds a run."""
    if folder.exists() and not folder.is_dir():
        raise DsctlError(f"{folder} is a file, not a folder", hint="give another --output-path")
    traces = [folder / RUN_FILE, folder / METRICS_FILE, *sorted(folder.glob("step-*.safetensors"))]
    for trace in traces:
        if trace.exists():
            instead = "go on with it by --resume latest" if state_folders(folder) else "remove that folder"
            raise DsctlError(
                f"{folder} already holds a run ({trace.name})", hint=f"give another --output-path, or {instead}"
            )


def claim(folder: Path) -> list[Path]:
    """Create `folder`, check that it is writable, and return the created folders, innermost first."""
    refuse_used(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    prepare_folder(folder)
    return made


def lines_until(path: Path, step: int) -> list[str]:
    """Return the complete lines of metrics in `path` up to `step`, or [] if there is no file."""
    if not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        values = read_line(line)  # None: cut off when the process was killed
        if values is not None and line.endswith("\n") and step_of(values) <= step:
            kept.append(line)
    return kept


def step_of(values: Mapping[str, Any]) -> int:
    """Return the step of a line of metrics; 0 if it has none."""
    step = values.get("step")
    return step if isinstance(step, int) and not isinstance(step, bool) else 0
