"""A page about a validated dataset that needs nothing beside it: problems, charts and pictures in one HTML file."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from dsctl_core.data.inspection import thumbnail
from dsctl_core.data.summary import readable_bytes
from dsctl_core.data.validation import Problem, Validation
from dsctl_core.report.html import document

MOST_PROBLEMS, MOST_PICTURES, BARS = 2000, 48, 24


def report_page(found: Validation, summary: Mapping[str, Any], title: str, videos: bool) -> str:
    """Return the page."""
    usable = list(found.files)
    sample = usable[:: max(len(usable) // 24, 1)][:24]
    errors, warnings = summary["errors"], summary["warnings"]
    verdict = "No problem found." if not found.problems else f"{errors} errors, {warnings} warnings."
    parts = [
        f"<p>{verdict} {summary['rows']} rows ({escape(summary['layout'])}), {summary['files']} files, "
        f"{readable_bytes(summary['file_bytes'])}.</p>",
        _cache(summary),
        "<h2>Problems</h2>",
        _problems(found, videos),
        "<h2>Sizes of the files</h2>",
        _bars(summary["resolutions"]),
        "<h2>Sizes trained at</h2>",
        _bars(summary["buckets"]),
        "<h2>Words in a caption</h2>",
        _bars(_histogram(len(prompt.split()) for each in found.samples for prompt in each.prompts)),
        "<h2>A sample</h2>",
        _pictures(sample, found, videos),
    ]
    return document(title, parts)


def _cache(summary: Mapping[str, Any]) -> str:
    size = summary["cache_bytes"]
    return "" if size is None else f"<p>A cache of it would have about {readable_bytes(size)} in bfloat16.</p>"


def _problems(found: Validation, videos: bool) -> str:
    if not found.problems:
        return "<p>None.</p>"
    rows = []
    for number, problem in enumerate(found.problems[:MOST_PROBLEMS]):
        picture = _image(problem, videos) if number < MOST_PICTURES else ""
        hint = f'<div class="hint">{escape(problem.hint)}</div>' if problem.hint else ""
        rows.append(
            f'<tr><td>{problem.row or ""}</td><td class="{problem.level}">{escape(problem.kind)}</td>'
            f"<td>{escape(problem.message)}{hint}</td><td>{picture}</td></tr>"
        )
    more = len(found.problems) - MOST_PROBLEMS
    rest = f"<p>... and {more} more.</p>" if more > 0 else ""
    head = "<tr><th>row</th><th>kind</th><th>problem</th><th></th></tr>"
    return f'<table class="problems wide">{head}{"".join(rows)}</table>{rest}'


def _image(problem: Problem, videos: bool) -> str:
    data = thumbnail(Path(problem.file), videos) if problem.file else None
    return "" if data is None else f'<img alt="" src="{_address(data)}">'


def _address(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def _pictures(paths: list[Path], found: Validation, videos: bool) -> str:
    figures = []
    for path in paths:
        data = thumbnail(path, videos)
        if data is not None:
            prompts = found.samples[found.rows_of[path][0]].prompts
            caption = escape(prompts[0][:200]) if prompts else ""
            figures.append(f'<figure><img alt="" src="{_address(data)}"><figcaption>{caption}</figcaption></figure>')
    return f'<div class="pictures">{"".join(figures)}</div>' if figures else "<p>None could be decoded.</p>"


def _histogram(values: Iterable[int]) -> dict[str, int]:
    """Return how many values there are in each of some equal ranges."""
    counts = Counter(values)
    if not counts:
        return {}
    low, high = min(counts), max(counts)
    step = max(-(-(high - low + 1) // 16), 1)
    ranges: dict[str, int] = {}
    for first in range(low, high + 1, step):
        name = str(first) if step == 1 else f"{first} to {first + step - 1}"
        ranges[name] = sum(counts[value] for value in range(first, first + step))
    return ranges


def _bars(counts: Mapping[str, int]) -> str:
    if not counts:
        return "<p>None.</p>"
    shown = list(counts.items())[:BARS]
    most = max(counts.values())
    rows = [
        f'<div class="bar"><span>{escape(name)}</span><div style="width:{100 * count / most:.1f}%"></div>'
        f"<span>{count}</span></div>"
        for name, count in shown
    ]
    rest = len(counts) - len(shown)
    return "".join(rows) + (f"<p>... and {rest} others.</p>" if rest else "")
