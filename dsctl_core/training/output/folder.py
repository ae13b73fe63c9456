"""Claim the output folder of a run, before anything long starts, so that two runs never share it."""

from __future__ import annotations

import json
from pathlib import Path

from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import prepare_folder
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
        try:
            values = json.loads(line)
        except ValueError:
            continue  # cut off when the process was killed
        if line.endswith("\n") and values.get("step", 0) <= step:
            kept.append(line)
    return kept
