"""Read the output folder of a run, which may be complete, in progress or failed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from dsctl_core.errors import DsctlError
from dsctl_core.files.json import checked, parse_json, read_line
from dsctl_core.files.regular import read_regular
from dsctl_core.media.made_file import SAMPLE_NAME, SAMPLES_FOLDER
from dsctl_core.readable import counted

if TYPE_CHECKING:
    from pandas import DataFrame, Series

METRICS, SKIPPED = "metrics.jsonl", "skipped.jsonl"
CHECKPOINT = re.compile(r"step-(\d+)(\..+)?\.(safetensors|peft)")
VALIDATION_LOSS = "validation_loss"  # of a line of metrics.jsonl that has nothing else but its step
OF_DATASET = "loss."  # begins the name of the loss of one of several datasets
LARGEST = 1e100  # a measurement with which sums and the scale of a chart stay finite
KEYS = ("run", "step")  # columns that a table of metrics begins with


def loss_of(label: str) -> str:
    """Return the name, in metrics.jsonl, of the loss of the dataset called `label`."""
    return f"{OF_DATASET}{label}"


class About(TypedDict, total=False):
    """The parts of run.json that a page shows."""

    options: dict[str, Any]
    hardware: dict[str, Any]
    parameters: dict[str, int]
    versions: dict[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """The data of one run.

    `about` is the content of run.json. `metrics` has a row per step and a float64 column per measurement in
    metrics.jsonl, NaN where a step has no finite value. `samples` are the paths of sample images by number and step,
    `checkpoints` the steps of saved checkpoints, and `skipped` is the number of entries in skipped.jsonl. `faults`
    say what of the files could not be used.
    """

    folder: Path
    about: dict[str, Any]
    metrics: DataFrame
    samples: dict[int, dict[int, Path]]
    checkpoints: list[int]
    skipped: int
    faults: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the run, which is the name of its folder."""
        return self.folder.absolute().name

    @property
    def options(self) -> dict[str, Any]:
        """The resolved options."""
        return self.about.get("options", {})

    @property
    def last_step(self) -> int:
        """The last step in `metrics`; 0 if there is none."""
        return max(self.metrics.index.tolist(), default=0)

    @property
    def datasets(self) -> list[str]:
        """The names of several datasets, of which the losses were measured."""
        return [str(name).removeprefix(OF_DATASET) for name in self.metrics if str(name).startswith(OF_DATASET)]

    def curve(self, name: str) -> Series:
        """Return the values of one measurement by step, without the steps that have none."""
        import pandas as pd

        known = self.metrics.get(name, pd.Series(index=self.metrics.index, dtype="float64"))
        return known.dropna()


def read_run(folder: Path) -> RunRecord:
    """Read the run in `folder`.

    Lines that cannot be used are left out, and of two values for one step the later one is used. Raises DsctlError for
    a folder that does not belong to a run, and for anything but a regular file in the place of one.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DsctlError(f"{folder} {what}", hint="give the --output-path of a run")
    about = _read_about(folder / "run.json")
    (metrics, bad), (skips, bad_skips) = read_metrics(folder / METRICS), _lines(folder / SKIPPED)
    samples = _samples(folder / SAMPLES_FOLDER)
    if not about and not len(metrics) and not samples:
        raise DsctlError(f"{folder} holds no run", hint="give the --output-path of `dsctl train`")
    saved = {int(match[1]) for path in folder.iterdir() if (match := CHECKPOINT.fullmatch(path.name))}
    lines = ((folder / METRICS, bad, "measurement"), (folder / SKIPPED, bad_skips, "skipped row"))
    faults = tuple(
        f"{path}: {counted(count, f'line is no {what} and was', f'lines are no {what}s and were')} left out"
        for path, count, what in lines
        if count
    )
    return RunRecord(folder, about, metrics, samples, sorted(saved), len(skips), faults)


def read_metrics(path: Path) -> tuple[DataFrame, int]:
    """Return a metrics.jsonl as a table, with a row per step, in order, and a column per measurement.

    The line of a validation has only its loss, which goes into the row of its step. A measurement whose name is no
    valid text is left out, and so is a line without a step, counted from 0; the second result is the number of such
    lines and of those that are no objects.
    """
    import pandas as pd

    rows: dict[int, dict[str, float]] = {}
    lines, bad = _lines(path)
    for line in lines:
        step = line.pop("step", None)
        if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**63:
            measured = {name: _number(value) for name, value in line.items() if _is_text(name)}
            rows.setdefault(step, {}).update(measured)
        else:
            bad += 1
    index = pd.Index(list(rows), name="step", dtype="int64")
    return pd.DataFrame(list(rows.values()), index=index, dtype="float64").sort_index(), bad


def _is_text(name: str) -> bool:
    """Return whether `name` can be written as UTF-8, which an unpaired surrogate of JSON cannot."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def _number(value: Any) -> float:
    """Return a measurement in float64; NaN for what is no number, or one beyond LARGEST, such as an infinite one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if abs(value) <= LARGEST else math.nan


def metrics_table(runs: Sequence[RunRecord], names: Sequence[str]) -> DataFrame:
    """Return the metrics of all runs as one long table, with the columns `run` (from `names`) and `step` in front.

    A cell without a measurement is missing (NaN or NA); the columns of bytes are whole numbers.
    """
    import pandas as pd

    tables = [
        run.metrics.assign(run=name).reset_index() for name, run in zip(names, runs, strict=True) if len(run.metrics)
    ]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(KEYS))
    measured = [column for column in table if column not in KEYS]
    whole = {name: "Int64" for name in measured if name.endswith("_bytes") and _whole(table[name])}
    return table[[*KEYS, *measured]].astype(whole)


def _whole(column: Series) -> bool:
    known = column.dropna()
    return bool(((known % 1 == 0) & (known.abs() < 2**53)).all())


def compare_options(runs: Sequence[RunRecord], written: Callable[[Any], str]) -> DataFrame:
    """Return the options in which `runs` differ: a row for each option, a column for each run, numbered from 0.

    `written` gives the text of a value, by which values are compared. The output folder differs always and is no row.
    """
    import pandas as pd

    names = dict.fromkeys(name for run in runs for name in run.options if name != "output_path")
    texts = {number: {name: written(run.options.get(name)) for name in names} for number, run in enumerate(runs)}
    table = pd.DataFrame(texts, index=list(names), dtype="object")
    return table[table.nunique(axis="columns") > 1]


def names_of(runs: Sequence[RunRecord]) -> list[str]:
    """Return the names of the runs, or their folders for runs with the same name."""
    names = [run.name for run in runs]
    return [run.name if names.count(run.name) == 1 else str(run.folder) for run in runs]


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Read the runs in `folders`; raise DsctlError for a folder that is named twice or has no run."""
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise DsctlError(f"{folder} is given twice", hint="name each run once")
    return [read_run(folder) for folder in folders]


def _read_about(path: Path) -> dict[str, Any]:
    content = _content(path)
    if content is None:
        return {}
    about: dict[str, Any] = parse_json(content.removeprefix(b"\xef\xbb\xbf"), str(path))
    checked(about, About, str(path), hint="it is written by `dsctl train`")
    return about


def _content(path: Path) -> bytes | None:
    """Return the content of a file, None if there is no file."""
    try:
        return read_regular(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DsctlError(f"{path} cannot be read: {error.strerror}", hint="see what is there, or remove it") from error


def _lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the objects in a jsonl file, and the number of other lines, without the last while it is being written."""
    *lines, last = (_content(path) or b"").decode("utf-8", errors="replace").split("\n")
    read = [read_line(line) for line in lines if line.strip()]
    end = read_line(last)
    found = [value for value in (*read, end) if value is not None]
    return found, read.count(None)


def _samples(folder: Path) -> dict[int, dict[int, Path]]:
    found: dict[int, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = SAMPLE_NAME.fullmatch(path.name)
        if match and path.is_file():
            found.setdefault(int(match[2]), {})[int(match[1])] = path
    return {number: dict(sorted(found[number].items())) for number in sorted(found)}
