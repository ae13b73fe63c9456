"""Claim the output folder of a run, before anything long starts, so that two runs never share it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dsctl_core.cache.folder import SKIPPED_FILE
from dsctl_core.cache.manifest import is_cache
from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import prepare_folder
from dsctl_core.files.json import read_json, read_line
from dsctl_core.files.ownership import require_folder
from dsctl_core.media.made_file import CLIP_SUFFIXES, PICTURE_SUFFIX, SAMPLE, SAMPLE_NAME, SAMPLES_FOLDER
from dsctl_core.training.state.folder import STATE_FOLDER, clear_leftovers, locked, state_folders

RUN_FILE, METRICS_FILE, TRACKERS_FILE = "run.json", "metrics.jsonl", "trackers.json"
CSV_FILE = "metrics.csv"
CHECKPOINT = re.compile(r"step-\d+(\..+)?\.(safetensors|peft)")


def refuse_used(folder: Path) -> None:
    """Raise a DsctlError unless a new run may be written into `folder`.

    It may not where the folder is a file, holds a cache, holds a run with a checkpoint or a state, or has a file of
    somebody else under a name that a run writes. What a run has left that ended before its first checkpoint is in
    nobody's way: there is nothing to go on from.
    """
    require_folder(folder, "--output-path")
    if is_cache(folder):
        raise DsctlError(f"{folder} holds a cache, not a run", hint="give another --output-path")
    saved = [path for path in _entries(folder) if CHECKPOINT.fullmatch(path.name)]
    saved += [path for _, path in state_folders(folder)]
    if saved:
        found = next((name for name in (RUN_FILE, METRICS_FILE) if (folder / name).exists()), saved[0].name)
        instead = "go on with it by --resume latest" if state_folders(folder) else "remove that folder"
        raise DsctlError(f"{folder} already holds a run ({found})", hint=f"give another --output-path, or {instead}")
    for path in _written_by_a_run(folder):
        if not _is_left_by_a_run(path):
            raise DsctlError(
                f"{path} is there already, and no run of dsctl wrote it",
                hint="give another --output-path, or remove it",
            )


def claim(folder: Path) -> list[Path]:
    """Create `folder`, check that it is writable, and return the created folders, innermost first.

    What an earlier run has left there that ended before its first checkpoint is removed. Raises a DsctlError for a
    folder that `refuse_used` refuses, and for one that another process is training in.
    """
    refuse_used(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    prepare_folder(folder)
    if not made and (list(_written_by_a_run(folder)) or (folder / STATE_FOLDER).is_dir()):
        with locked(folder):
            refuse_used(folder)  # once more: the run that held the lock may have saved a step by now
            clear_leftovers(folder)
            for path in _written_by_a_run(folder):
                path.unlink()
    return made


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _written_by_a_run(folder: Path) -> Iterator[Path]:
    """Yield what is in `folder` under the names of files that a run without a checkpoint writes."""
    for name in (RUN_FILE, METRICS_FILE, SKIPPED_FILE, TRACKERS_FILE, CSV_FILE):
        if (folder / name).exists() or (folder / name).is_symlink():
            yield folder / name
    for name in (STATE_FOLDER, SAMPLES_FOLDER):
        path = folder / name
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            yield path
    if not (folder / SAMPLES_FOLDER).is_symlink():
        yield from (path for path in _entries(folder / SAMPLES_FOLDER) if SAMPLE_NAME.fullmatch(path.name))


def _is_left_by_a_run(path: Path) -> bool:
    """Return whether a run of dsctl wrote the file `path`, which its content must show."""
    if path.is_symlink() or not path.is_file():
        return False
    if path.suffix in (PICTURE_SUFFIX, *CLIP_SUFFIXES):
        return SAMPLE.proves(path)
    try:
        return PROOFS[path.name](path)
    except (DsctlError, OSError, ValueError, KeyError):
        return False


def _has_lines_with(*names: str) -> Callable[[Path], bool]:
    def proves(path: Path) -> bool:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [read_line(line) for line in lines if line.endswith("\n")]  # the last may be cut off
        return all(line is not None and line.keys() >= set(names) for line in whole)

    return proves


def _is_run_file(path: Path) -> bool:
    about: Any = read_json(path)
    return about.get("command") == "train" and "dsctl" in about.get("versions", ())


def _is_csv_of_metrics(path: Path) -> bool:
    with path.open(encoding="utf-8") as stream:
        return stream.readline().startswith("step,loss,lr,grad_norm,seconds,")


PROOFS: dict[str, Callable[[Path], bool]] = {
    RUN_FILE: _is_run_file,
    METRICS_FILE: _has_lines_with("step"),
    SKIPPED_FILE: _has_lines_with("problem", "hint", "kind"),
    TRACKERS_FILE: lambda path: read_json(path).keys() == {"id"},
    CSV_FILE: _is_csv_of_metrics,
}


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
