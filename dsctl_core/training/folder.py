"""The output folder of a run: claimed before anything long starts, never shared by two runs."""

from __future__ import annotations

from pathlib import Path

from dsctl_core.checkpoint.files import prepare_folder
from dsctl_core.errors import DsctlError

RUN_FILE, METRICS_FILE = "run.json", "metrics.jsonl"


def refuse_used(folder: Path) -> None:
    """Raise a DsctlError if `folder` is a file or already holds a run."""
    if folder.exists() and not folder.is_dir():
        raise DsctlError(f"{folder} is a file, not a folder", hint="give another --output-path")
    traces = [folder / RUN_FILE, folder / METRICS_FILE, *sorted(folder.glob("step-*.safetensors"))]
    for trace in traces:
        if trace.exists():
            raise DsctlError(
                f"{folder} already holds a run ({trace.name})", hint="give another --output-path, or remove that folder"
            )


def claim(folder: Path) -> list[Path]:
    """Make `folder`, prove that it can be written, and return the folders that had to be made, innermost first."""
    refuse_used(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    prepare_folder(folder)
    return made


def unclaim(made: list[Path]) -> None:
    """Remove the folders that `claim` made, as far as they are empty: a run that never began leaves nothing."""
    for path in made:
        if not path.is_dir() or any(path.iterdir()):
            return
        path.rmdir()
