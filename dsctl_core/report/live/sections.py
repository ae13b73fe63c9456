"""Render the sections of the live page: HTML that Jinja2 escapes, and the samples as data for the slider."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dsctl_core.readable import readable_bytes, readable_duration
from dsctl_core.report.html import environment
from dsctl_core.report.live.files import Sample
from dsctl_core.report.live.runs import LiveRun
from dsctl_core.report.run import (
    COLOURS,
    compared_numbers,
    compared_options,
    curves,
    described_options,
    main_numbers,
    written,
)
from dsctl_core.report.samples import read_metadata, settings_of
from dsctl_core.version import __version__

LINES = 12  # of metrics in the log
TEMPLATE = "live_sections.html.j2"


def page(title: str) -> str:
    """Return the HTML of the page without content, which its script fills with the sections."""
    return environment().get_template("live.html.j2").render(title=title, version=__version__)


def sections(runs: Sequence[LiveRun], wanted: Sequence[str]) -> dict[str, str]:
    """Return each section by name, of the runs whose keys are `wanted`, in that order.

    If none is, it is the first that can be read. All are HTML, but for `samples`, which is JSON.
    """
    by_key = {run.found.key: run for run in runs}
    readable = [run for run in runs if run.record is not None]
    chosen = [by_key[key] for key in dict.fromkeys(wanted) if key in by_key] or readable[:1]
    shown = [run for run in chosen if run.record is not None]
    records, names = [run.record for run in shown if run.record], _names(runs, shown)
    colours = {run.found.key: number % COLOURS for number, run in enumerate(shown)}
    several = len(shown) > 1
    values: dict[str, dict[str, Any]] = {
        "runs": {
            "runs": [
                {**_card(run), "name": name, "chosen": run in chosen, "colour": colours.get(run.found.key)}
                for run, name in zip(runs, _names(runs, runs), strict=True)
            ]
        },
        "numbers": {
            "faults": [(run.found.name, fault) for run in chosen for fault in run.faults],
            "numbers": main_numbers(records[0]) if records and not several else [],
            "comparison": compared_numbers(records, names) if several else None,
        },
        "curves": {"charts": curves(records, names), "legend": list(enumerate(names)) if several else []},
        "options": {
            "differences": compared_options(records, names) if several else None,
            "runs": [
                {"name": name, "key": run.found.key, "options": described_options(record)}
                for name, run, record in zip(names, shown, records, strict=True)
            ],
        },
        "log": {"logs": [log for name, run in zip(names, shown, strict=True) for log in _logs(name, run, several)]},
        "disk": {"runs": [_disk(name, run) for name, run in zip(names, shown, strict=True)]},
    }
    template = environment().get_template(TEMPLATE)
    made = {name: getattr(template.module, name)(**given).strip() for name, given in values.items()}
    return {**made, "samples": json.dumps(_samples(shown, names))}


def _names(runs: Sequence[LiveRun], shown: Sequence[LiveRun]) -> list[str]:
    """Return the names of `shown`: of runs with one name in several folders that are served, with these."""
    names = [run.found.name for run in runs]
    return [
        run.found.name if names.count(run.found.name) == 1 else f"{run.found.root.name}/{run.found.name}"
        for run in shown
    ]


def _card(run: LiveRun) -> dict[str, Any]:
    """Return what the list shows of a run."""
    record = run.record
    facts = [(label, value) for label, value, _ in main_numbers(record) if value != "-"] if record else []
    return {
        "key": run.found.key,
        "state": run.state,
        "step": record.last_step if record else 0,
        "total": run.total,
        "changed": math.floor(run.changed),
        "loss": dict(facts).get("loss"),
        "left": _time_left(run),
        "disk": readable_bytes(sum(run.disk.values())),
    }


def _time_left(run: LiveRun) -> str | None:
    """Return the time that the steps to come take at the pace of the last fifty; None if it is not known."""
    if run.record is None or run.state != "training" or run.total is None:
        return None
    seconds = run.record.curve("seconds").tail(50).mean()
    left = (run.total - run.record.last_step) * seconds
    return readable_duration(left) if math.isfinite(left) and left > 0 else None


def _logs(name: str, run: LiveRun, several: bool) -> Iterator[dict[str, str]]:
    """Yield the ends of the logs of a run: its metrics, the rows that were skipped, and log files."""
    before = f"{name}: " if several else ""
    assert run.record is not None
    lines = []
    for step, values in run.record.metrics.tail(LINES).iterrows():
        known = ((label, value) for label, value in values.items() if math.isfinite(value))
        lines.append("  ".join([f"step {step}", *(_measured(str(label), value) for label, value in known)]))
    if lines:
        yield {"name": f"{before}metrics.jsonl", "key": f"{run.found.key} metrics", "text": "\n".join(lines)}
    for log, text in run.logs.items():
        yield {"name": f"{before}{log}", "key": f"{run.found.key} {log}", "text": text}


def _measured(label: str, value: float) -> str:
    if label.endswith("_bytes"):
        return f"{label.removesuffix('_bytes')} {readable_bytes(value)}"
    return f"{label} {value:.4g}"


def _disk(name: str, run: LiveRun) -> dict[str, Any]:
    total = sum(run.disk.values())
    parts = [(kind, readable_bytes(size), f"{size / total:.4f}") for kind, size in run.disk.items()]
    return {"name": name, "total": readable_bytes(total), "parts": parts}


def _samples(runs: Sequence[LiveRun], names: Sequence[str]) -> dict[str, Any]:
    """Return the samples as the script takes them: all steps, and for each prompt the files of each run by step."""
    steps = sorted({step for run in runs for files in run.samples.values() for step in files})
    rows: dict[int, dict[str, Any]] = {}
    for position, run in enumerate(runs):
        for number, files in run.samples.items():
            about = _about(next(reversed(files.values())))
            told = written(about.get("prompt")) or _asked(run, number)
            shared = {"number": number, "prompt": told, "settings": settings_of(about), "runs": {}}
            row = rows.setdefault(number, shared)
            row["runs"][position] = {
                "differs": told if told != row["prompt"] else "",
                "files": {step: _address(run, number, step, file) for step, file in files.items()},
            }
    return {"steps": steps, "runs": list(names), "prompts": [rows[number] for number in sorted(rows)]}


def _address(run: LiveRun, number: int, step: int, file: Sample) -> dict[str, Any]:
    address = f"samples/{run.found.key}/{number}/{step}?{file.changed}"
    return {"address": address, "video": file.media_type.startswith("video/")}


def _about(file: Sample) -> dict[str, Any]:
    return _about_file(file.path, file.changed) if file.path.suffix == ".png" else {}


@functools.lru_cache(maxsize=4096)
def _about_file(path: Path, changed: int) -> dict[str, Any]:
    """Return the metadata of a picture that was `changed` then; a file that is written again is read again."""
    return read_metadata(path)


def _asked(run: LiveRun, number: int) -> str:
    """Return the prompt of a sample whose file has none: that of the options, in their order."""
    prompts = run.record.options.get("sample_prompt") if run.record else None
    known = isinstance(prompts, list) and 0 < number <= len(prompts)
    return written(prompts[number - 1]) if isinstance(prompts, list) and known else f"sample {number}"
