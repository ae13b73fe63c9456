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
    charts, shared = _curves(runs, names), {"version": __version__}
    if len(runs) == 1:
        run = runs[0]
        return render("run.html.j2", f"Training run {run.name}", run=_view(run, names[0], 0), charts=charts, **shared)
    head = ["run", *(name for name, _, _ in _numbers(runs[0]))]
    rows = [
        [name, *(f"{value} {more}".rstrip() for _, value, more in _numbers(run))]
        for name, run in zip(names, runs, strict=True)
    ]
    differences = [[_flag(name), *values] for name, *values in compare_options(runs, _written).itertuples()]
    return render(
        "runs.html.j2",
        f"{len(runs)} training runs",
        runs=[_view(run, name, number) for number, (name, run) in enumerate(zip(names, runs, strict=True))],
        comparison={"head": head, "rows": rows},
        differences={"head": ["", *names], "rows": differences},
        charts=charts,
        **shared,
    )


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
        "numbers": _numbers(run),
        "samples": sample_grid(run.samples),
        "options": _options(run),
    }


def _listed(steps: Sequence[int]) -> str:
    shown = [str(step) for step in steps]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:3], "...", *shown[-4:]])


def _numbers(run: RunRecord) -> list[tuple[str, str, str]]:
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


def _curves(runs: Sequence[RunRecord], names: Sequence[str]) -> list[Markup]:
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


def _options(run: RunRecord) -> dict[str, list[tuple[str, str]]] | None:
    """Return the options, hardware and versions of a run as (name, value); None if it has no run.json."""
    if not run.about:
        return None
    defaults = {name: field.default for name, field in TrainOptions.flat_fields().items()}
    chosen: list[tuple[str, str]] = []
    left: list[tuple[str, str]] = []
    for name, value in sorted(run.options.items()):
        always = name in ALWAYS_SHOWN and value is not None
        differs = _written(value) != _written(defaults.get(name)) and name != "output_path"
        (chosen if always or differs else left).append((_flag(name), _written(value)))
    hardware = [(name, _written(value)) for name, value in run.about.get("hardware", {}).items()]
    hardware += [(f"{name} parameters", f"{count:,}") for name, count in run.about.get("parameters", {}).items()]
    versions = [(name, _written(value)) for name, value in run.about.get("versions", {}).items()]
    return {"chosen": chosen, "defaults": left, "hardware": hardware, "versions": versions}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}" if name != "task" else "task"


def _written(value: Any) -> str:
    """Return the value of an option as text."""
    if isinstance(value, list | tuple):
        written = [_written(each) for each in value]
        return ("; " if any("," in each for each in written) else ", ").join(written)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_written(each)}" for name, each in value.items())
    if isinstance(value, float):
        return f"{value:.12g}"
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
