"""The tasks that there are: one for each file in dsctl_core/losses, found without importing it."""

from __future__ import annotations

from pathlib import Path

NO_TASKS = ("__init__", "columns", "contract", "timesteps")  # what the losses share
FIRST, SECOND = ":data_process", ":train"  # what a task's name ends with when it is one of its two stages


def loss_tasks(folder: Path) -> tuple[str, ...]:
    """Return the names of the files in `folder` that are tasks, `sft` in front."""
    names = (path.stem for path in folder.glob("*.py") if path.stem not in NO_TASKS)
    return tuple(sorted(names, key=lambda name: (name != "sft", name)))


LOSS_TASKS = loss_tasks(Path(__file__).parents[1] / "losses")
