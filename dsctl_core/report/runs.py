"""What a run has left in its output folder, whole or not: a run may be going on, or have failed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsctl_core.errors import DsctlError

SAMPLE = re.compile(r"step-(\d+)-(\d+)\.png")
CHECKPOINT = re.compile(r"step-(\d+)(\..+)?\.(safetensors|peft)")
VALIDATION_LOSS = "validation_loss"


@dataclass(frozen=True)
class RunRecord:
    """One run. `steps` are the lines of metrics.jsonl by step, `samples` the pictures by their number and step."""

    folder: Path
    about: dict[str, Any]
    steps: dict[int, dict[str, Any]]
    validation: dict[int, float]
    samples: dict[int, dict[int, Path]]
    checkpoints: list[int]
    skipped: int

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.folder.absolute().name

    @property
    def options(self) -> dict[str, Any]:
        """The options as they were resolved."""
        return self.about.get("options", {})

    @property
    def last_step(self) -> int:
        """The last step of which there is a line."""
        return max(self.steps, default=0)

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Return (step, value) of one measurement, without what is missing or no number."""
        found = ((step, line.get(name)) for step, line in sorted(self.steps.items()))
        return [(step, float(value)) for step, value in found if value is not None and _finite(value)]


def read_run(folder: Path) -> RunRecord:
    """Read the run in `folder`.

    Lines of metrics that are cut off are left out, and of two lines of one step the later counts. A folder without
    any trace of a run is a DsctlError.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DsctlError(f"{folder} {what}", hint="give the --output-path of a run")
    about = _read_about(folder / "run.json")
    steps: dict[int, dict[str, Any]] = {}
    validation: dict[int, float] = {}
    for line in _lines(folder / "metrics.jsonl"):
        step = line.get("step")
        if not isinstance(step, int):
            continue
        if VALIDATION_LOSS in line:
            if _finite(line[VALIDATION_LOSS]):
                validation[step] = line[VALIDATION_LOSS]
        else:
            steps[step] = line
    samples = _samples(folder / "samples")
    if not about and not steps and not samples:
        raise DsctlError(f"{folder} holds no run", hint="give the --output-path of `dsctl train`")
    saved = {int(match[1]) for path in folder.iterdir() if (match := CHECKPOINT.fullmatch(path.name))}
    return RunRecord(
        folder, about, steps, validation, samples, sorted(saved), len(list(_lines(folder / "skipped.jsonl")))
    )


def _read_about(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DsctlError(f"{path} cannot be read: {error}", hint="it is written by `dsctl train`") from error
    return found if isinstance(found, dict) else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a jsonl file, without a line that is cut off; none if there is no file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DsctlError(f"{path} cannot be read: {error.strerror}", hint="check its permissions") from error
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _samples(folder: Path) -> dict[int, dict[int, Path]]:
    found: dict[int, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = SAMPLE.fullmatch(path.name)
        if match:
            found.setdefault(int(match[2]), {})[int(match[1])] = path
    return {number: dict(sorted(found[number].items())) for number in sorted(found)}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and value == value and abs(value) != float("inf")
