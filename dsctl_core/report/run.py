"""Create the page for one training run, or for a comparison of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from dsctl_core.options import TrainOptions
from dsctl_core.readable import readable_bytes, readable_duration
from dsctl_core.report.charts import Curve, averaged, chart, text
from dsctl_core.report.html import render
from dsctl_core.report.runs import VALIDATION_LOSS, RunRecord, compare_options, loss_of, names_of
from dsctl_core.report.samples import sample_grid
from dsctl_core.version import __version__

if TYPE_CHECKING:
    from pandas import Series

COLOURS = 6  # that the style of a page has
ALWAYS_SHOWN = {"task", "model", "dataset_base_path", "from_cache", "lora_rank", "trainable_models", "learning_rate"}
ALWAYS_SHOWN |= {"batch_size", "max_steps", "num_epochs", "seed", "mixed_precision"}
GB = 1e9


def report_page(runs: Sequence[RunRecord]) -> str:
    """Return the HTML page for `runs`; several runs are compared first."""
    names = names_of(runs)
    charts, shared = curves(runs, names), {"version": __version__}
    if len(runs) == 1:
        run = runs[0]
        return render("run.html.j2", f"Training run {run.name}", run=_view(run, names[0], 0), charts=charts, **shared)
    return render(
        "runs.html.j2",
        f"{len(runs)} training runs",
        runs=[_view(run, name, number) for number, (name, run) in enumerate(zip(names, runs, strict=True))],
        comparison=compared_numbers(runs, names),
        differences=compared_options(runs, names),
        charts=charts,
        **shared,
    )


def compared_numbers(runs: Sequence[RunRecord], names: Sequence[str]) -> dict[str, Any]:
    """Return a table of the main numbers, with a row for each run, as `head` and `rows`."""
    rows = [
        [name, *(f"{value} {more}".rstrip() for _, value, more in main_numbers(run))]
        for name, run in zip(names, runs, strict=True)
    ]
    return {"head": ["run", *(name for name, _, _ in main_numbers(runs[0]))], "rows": rows}


def compared_options(runs: Sequence[RunRecord], names: Sequence[str]) -> dict[str, Any]:
    """Return a table of the options that differ, with a column for each run, as `head` and `rows`."""
    rows = [[flag(name), *values] for name, *values in compare_options(runs, written).itertuples()]
    return {"head": ["", *names], "rows": rows}


def _view(run: RunRecord, name: str, number: int) -> dict[str, Any]:
    """Return the values that the templates show for one run."""
    about = run.about
    words = [about.get("preset") or run.options.get("model") or about.get("family"), run.options.get("task")]
    words += [f"started {about['started']}" if "started" in about else None, str(run.folder)]
    return {
        "name": name,
        "colour": number % COLOURS,
        "summary": " · ".join(str(word) for word in words if word),
        "steps": run.last_step,
        "skipped": run.skipped,
        "checkpoints": _listed(run.checkpoints),
        "numbers": main_numbers(run),
        "samples": sample_grid(run.samples),
        "options": described_options(run),
    }


def _listed(steps: Sequence[int]) -> str:
    shown = [str(step) for step in steps]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:3], "...", *shown[-4:]])


def main_numbers(run: RunRecord) -> list[tuple[str, str, str]]:
    """Return the main numbers of a run as (name, value, remark), with the same names for every run."""
    total = run.options.get("max_steps")
    loss, pace, memory = run.curve("loss"), run.curve("samples_per_second"), run.curve("peak_memory_bytes")
    seconds, validation = run.curve("seconds").sum(), run.curve(VALIDATION_LOSS)
    best = "" if validation.empty else f"best {text(validation.min())} at step {validation.idxmin()}"
    return [
        ("steps", str(run.last_step), f"of {total}" if total else ""),
        ("loss", "-" if loss.empty else text(averaged(_points(loss))[-1][1]), "moving average"),
        ("validation loss", "-" if validation.empty else text(validation.iloc[-1]), best),
        ("samples/s", "-" if pace.empty else text(pace.median()), "median"),
        ("peak memory", "-" if memory.empty else readable_bytes(memory.max()), ""),
        ("time in steps", readable_duration(seconds) if seconds else "-", ""),
    ]


def _points(curve: Series) -> list[tuple[float, float]]:
    return list(zip(curve.index.tolist(), curve.tolist(), strict=True))


def curves(runs: Sequence[RunRecord], names: Sequence[str]) -> list[Markup]:
    """Return a chart of each measurement over the steps, with a curve for each run that has it."""

    def of(name: str, *, smooth: bool = False, unit: float = 1) -> list[Curve]:
        return [
            Curve(label, _points(run.curve(name) / unit), number % COLOURS, smooth)
            for number, (label, run) in enumerate(zip(names, runs, strict=True))
        ]

    labels = dict.fromkeys(label for run in runs for label in run.datasets)
    figures = [
        chart("Loss, each step and moving average", of("loss", smooth=True)),
        *(chart(f"Loss of the dataset {label}", of(loss_of(label), smooth=True)) for label in labels),
        chart("Validation loss", of(VALIDATION_LOSS)),
        chart("Learning rate", of("lr"), from_zero=True),
        chart("Gradient norm", of("grad_norm", smooth=True), from_zero=True),
        chart("Samples a second", of("samples_per_second", smooth=True), from_zero=True),
        chart("Peak memory, GB", of("peak_memory_bytes", unit=GB), from_zero=True),
    ]
    return [figure for figure in figures if figure]


def described_options(run: RunRecord) -> dict[str, list[tuple[str, str]]] | None:
    """Return the options, hardware and versions of a run as (name, value); None if it has no run.json."""
    if not run.about:
        return None
    defaults = {name: field.default for name, field in TrainOptions.flat_fields().items()}
    chosen: list[tuple[str, str]] = []
    left: list[tuple[str, str]] = []
    for name, value in sorted(run.options.items()):
        always = name in ALWAYS_SHOWN and value is not None
        differs = written(value) != written(defaults.get(name)) and name != "output_path"
        (chosen if always or differs else left).append((flag(name), written(value)))
    hardware = [(name, written(value)) for name, value in run.about.get("hardware", {}).items()]
    hardware += [(f"{name} parameters", f"{count:,}") for name, count in run.about.get("parameters", {}).items()]
    versions = [(name, written(value)) for name, value in run.about.get("versions", {}).items()]
    return {"chosen": chosen, "defaults": left, "hardware": hardware, "versions": versions}


def flag(name: str) -> str:
    """Return the name of an option as a user writes it."""
    return f"--{name.replace('_', '-')}" if name != "task" else "task"


def written(value: Any) -> str:
    """Return the value of an option as text."""
    if isinstance(value, list | tuple):
        parts = [written(each) for each in value]
        return ("; " if any("," in each for each in parts) else ", ").join(parts)
    if isinstance(value, dict):
        return ", ".join(f"{name} {written(each)}" for name, each in value.items())
    if isinstance(value, float):
        return f"{value:.12g}"
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
