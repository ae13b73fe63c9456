"""The page about one run or several."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from dsctl_core.data.summary import readable_bytes
from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import prepare_folder, write_text
from dsctl_core.options import TrainOptions
from dsctl_core.report.charts import Curve, averaged, chart, text
from dsctl_core.report.html import cards, document, facts
from dsctl_core.report.runs import RunRecord, read_run
from dsctl_core.report.samples import sample_grid
from dsctl_core.version import __version__

COLOURS = 6  # that the style of a page has
ALWAYS_TOLD = {"task", "model", "dataset_base_path", "from_cache", "lora_rank", "trainable_models", "learning_rate"}
ALWAYS_TOLD |= {"batch_size", "max_steps", "num_epochs", "seed", "mixed_precision"}
GB = 1e9


def write_report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Write the page about the runs in `folders`, finished or not, and return its path.

    It goes to `output`, else to report.html in the first folder. Raises DsctlError for a folder without a run.
    """
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise DsctlError(f"{folder} is given twice", hint="name each run once")
    runs = [read_run(folder) for folder in folders]
    path = output or folders[0] / "report.html"
    if path.is_dir():
        raise DsctlError(f"{path} is a folder", hint="give --output a name that ends in .html")
    prepare_folder(path.parent)
    write_text(path, report_page(runs))
    return path


def report_page(runs: Sequence[RunRecord]) -> str:
    """Return the page."""
    names = _names(runs)
    if len(runs) == 1:
        run = runs[0]
        parts = [_summary(run), cards(_numbers(run)), _curves(runs, names), _samples(run, 2), _about(run, 2)]
        return document(f"Training run {run.name}", [*parts, _written()])
    head = ["run", *(name for name, _, _ in _numbers(runs[0]))]
    table = [
        [name, *(f"{value} {more}".rstrip() for _, value, more in _numbers(run))]
        for name, run in zip(names, runs, strict=True)
    ]
    parts = [_legend(names), _table(head, table), _curves(runs, names), _differences(runs, names)]
    for name, run in zip(names, runs, strict=True):
        parts += [f"<h2>{escape(name)}</h2>", _summary(run), _samples(run, 3), _about(run, 3)]
    return document(f"{len(runs)} training runs", [*parts, _written()])


def _names(runs: Sequence[RunRecord]) -> list[str]:
    """Return the runs' names; where two are alike, with their folders."""
    names = [run.name for run in runs]
    return [run.name if names.count(run.name) == 1 else str(run.folder) for run in runs]


def _summary(run: RunRecord) -> str:
    about = run.about
    words = [about.get("preset") or run.options.get("model") or about.get("family"), run.options.get("task")]
    words += [f"started {about['started']}" if "started" in about else None, str(run.folder)]
    told = [f"<p>{escape(' · '.join(str(word) for word in words if word))}</p>"]
    if not run.steps:
        told.append('<p class="warning">No step is recorded yet.</p>')
    if run.skipped:
        told.append(f'<p class="warning">{run.skipped} rows of the dataset were skipped, see skipped.jsonl.</p>')
    if run.checkpoints:
        told.append(f'<p class="soft">Weights saved after step {_listed(run.checkpoints)}.</p>')
    elif run.steps:
        told.append('<p class="warning">No weights are saved yet.</p>')
    return "".join(told)


def _listed(steps: Sequence[int]) -> str:
    shown = [str(step) for step in steps]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:3], "...", *shown[-4:]])


def _numbers(run: RunRecord) -> list[tuple[str, str, str]]:
    """Return the numbers that matter most, with names that are the same for every run, and a remark."""
    total = run.options.get("max_steps")
    loss, pace, memory = run.curve("loss"), run.curve("samples_per_second"), run.curve("peak_memory_bytes")
    seconds = sum(value for _, value in run.curve("seconds"))
    last, best = "-", ""
    if run.validation:
        lowest = min(run.validation, key=lambda step: run.validation[step])
        last = text(run.validation[max(run.validation)])
        best = f"best {text(run.validation[lowest])} at step {lowest}"
    return [
        ("steps", str(run.last_step), f"of {total}" if total else ""),
        ("loss", text(averaged(loss)[-1][1]) if loss else "-", "moving average"),
        ("validation loss", last, best),
        ("samples/s", text(statistics.median(value for _, value in pace)) if pace else "-", "median"),
        ("peak memory", readable_bytes(max(value for _, value in memory)) if memory else "-", ""),
        ("time in steps", _duration(seconds) if seconds else "-", ""),
    ]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{seconds:.3g} s"


def _curves(runs: Sequence[RunRecord], names: Sequence[str]) -> str:
    def of(name: str, *, smooth: bool = False, unit: float = 1) -> list[Curve]:
        return [
            Curve(label, [(step, value / unit) for step, value in run.curve(name)], number % COLOURS, smooth)
            for number, (label, run) in enumerate(zip(names, runs, strict=True))
        ]

    validation = [
        Curve(label, sorted(run.validation.items()), number % COLOURS)
        for number, (label, run) in enumerate(zip(names, runs, strict=True))
    ]
    figures = [
        chart("Loss, each step and moving average", of("loss", smooth=True)),
        chart("Validation loss", validation),
        chart("Learning rate", of("lr")),
        chart("Gradient norm", of("grad_norm", smooth=True)),
        chart("Samples a second", of("samples_per_second", smooth=True)),
        chart("Peak memory, GB", of("peak_memory_bytes", unit=GB)),
    ]
    shown = "".join(figures)
    return f'<h2>Curves</h2><div class="charts">{shown}</div>' if shown else ""


def _legend(names: Sequence[str]) -> str:
    entries = "".join(
        f'<span><i style="background: var(--c{number % COLOURS})"></i>{escape(name)}</span>'
        for number, name in enumerate(names)
    )
    return f'<p class="legend">{entries}</p>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _differences(runs: Sequence[RunRecord], names: Sequence[str]) -> str:
    """Return the options in which the runs differ."""
    keys = dict.fromkeys(key for run in runs for key in run.options if key != "output_path")
    rows = []
    for key in keys:
        values = [_said(run.options.get(key)) for run in runs]
        if len(set(values)) > 1:
            rows.append([_flag(key), *values])
    return f"<h2>Options that differ</h2>{_table(['', *names], rows) if rows else '<p>None.</p>'}"


def _samples(run: RunRecord, level: int) -> str:
    grid = sample_grid(run.samples)
    return f"<h{level}>Samples over the steps</h{level}>{grid}" if grid else ""


def _about(run: RunRecord, level: int) -> str:
    if not run.about:
        return '<p class="warning">There is no run.json: the options are not known.</p>'
    defaults = {name: field.default for name, field in TrainOptions.flat_fields().items()}
    chosen: list[tuple[str, str]] = []
    left: list[tuple[str, str]] = []
    for name, value in sorted(run.options.items()):
        told = name in ALWAYS_TOLD and value is not None
        differs = _said(value) != _said(defaults.get(name)) and name != "output_path"
        (chosen if told or differs else left).append((_flag(name), _said(value)))
    parameters = [(f"{name} parameters", f"{count:,}") for name, count in run.about.get("parameters", {}).items()]
    hardware = [(name, _said(value)) for name, value in run.about.get("hardware", {}).items()]
    versions = [(name, _said(value)) for name, value in run.about.get("versions", {}).items()]
    sections = (("Options", chosen), ("Hardware", [*hardware, *parameters]), ("Versions", versions))
    shown = [f"<section><h{level}>{title}</h{level}>{facts(rows)}</section>" for title, rows in sections]
    right = f"<div>{shown[1]}{shown[2]}</div>"
    rest = f"<details><summary>Options left at their defaults</summary>{facts(left)}</details>"
    return f'<div class="columns"><div>{shown[0]}{rest}</div>{right}</div>'


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}" if name != "task" else "task"


def _said(value: Any) -> str:
    """Return the value of an option as it would be written."""
    if isinstance(value, list | tuple):
        said = [_said(each) for each in value]
        return ("; " if any("," in each for each in said) else ", ").join(said)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(each)}" for name, each in value.items())
    if isinstance(value, float):
        return f"{value:.12g}"
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _written() -> str:
    return f'<p class="soft">Written by dsctl {escape(__version__)}.</p>'
