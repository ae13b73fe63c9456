"""Read what a run has left in its output folder, whole or not: the run may be in progress, or have failed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.errors import DsctlError

if TYPE_CHECKING:
    from pandas import DataFrame

SAMPLE = re.compile(r"step-(\d+)-(\d+)\.png")
CHECKPOINT = re.compile(r"step-(\d+)(\..+)?\.(safetensors|peft)")
VALIDATION_LOSS = "validation_loss"  # of a line of metrics.jsonl that has nothing else but its step


@dataclass(frozen=True)
class RunRecord:
    """One run. `metrics` has a row for each step, `samples` the pictures by their number and step.

    A column of `metrics` is a measurement of metrics.jsonl in float64, NaN where a step has none or no finite one.
    """

    folder: Path
    about: dict[str, Any]
    metrics: DataFrame
    samples: dict[int, dict[int, Path]]
    checkpoints: list[int]
    skipped: int

    @property
    def name(self) -> str:
        """The name of the run: that of its folder."""
        return self.folder.absolute().name

    @property
    def options(self) -> dict[str, Any]:
        """The options as they were resolved."""
        return self.about.get("options", {})

    @property
    def last_step(self) -> int:
        """The last step of which there is a line; 0 where there is none."""
        return max(self.metrics.index.tolist(), default=0)

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Return (step, value) of one measurement, without the steps that have none."""
        if name not in self.metrics:
            return []
        known = self.metrics[name].dropna()
        return list(zip(known.index.tolist(), known.tolist(), strict=True))


def read_run(folder: Path) -> RunRecord:
    """Read the run in `folder`.

    Lines of metrics that are cut off are left out, and of two values for one step the later counts. A folder without
    any trace of a run is a DsctlError.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DsctlError(f"{folder} {what}", hint="give the --output-path of a run")
    about = _read_about(folder / "run.json")
    metrics = read_metrics(folder / "metrics.jsonl")
    samples = _samples(folder / "samples")
    if not about and metrics.empty and not samples:
        raise DsctlError(f"{folder} holds no run", hint="give the --output-path of `dsctl train`")
    saved = {int(match[1]) for path in folder.iterdir() if (match := CHECKPOINT.fullmatch(path.name))}
    return RunRecord(folder, about, metrics, samples, sorted(saved), len(list(_lines(folder / "skipped.jsonl"))))


def read_metrics(path: Path) -> DataFrame:
    """Return the table of a metrics.jsonl: a row for each step, in order, a column for each measurement.

    The line of a validation has only its loss, which goes into the row of its step.
    """
    import pandas as pd

    lines = [line for line in _lines(path) if isinstance(line.get("step"), int)]
    table = pd.DataFrame.from_records(lines, columns=list(dict.fromkeys(name for line in lines for name in line)))
    if table.empty:
        return pd.DataFrame(index=pd.Index([], name="step", dtype="int64"))
    numbers = table.apply(pd.to_numeric, errors="coerce").replace([float("inf"), -float("inf")], float("nan"))
    return numbers.astype({"step": "int64"}).groupby("step").last().astype("float64")


def metrics_table(runs: Sequence[RunRecord], names: Sequence[str]) -> DataFrame:
    """Return the metrics of all runs as one long table, with the columns `run` (from `names`) and `step` in front."""
    import pandas as pd

    tables = [run.metrics.assign(run=name).reset_index() for name, run in zip(names, runs, strict=True)]
    table = pd.concat(tables, ignore_index=True)
    return table[["run", "step", *(column for column in table if column not in ("run", "step"))]]


def names_of(runs: Sequence[RunRecord]) -> list[str]:
    """Return the names of the runs; where two are the same, their folders."""
    names = [run.name for run in runs]
    return [run.name if names.count(run.name) == 1 else str(run.folder) for run in runs]


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Read the runs in `folders`, finished or not; one that is named twice, or holds no run, is a DsctlError."""
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise DsctlError(f"{folder} is given twice", hint="name each run once")
    return [read_run(folder) for folder in folders]


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
