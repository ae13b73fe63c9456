"""Create the page for a validated dataset: problems, charts and images in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.data.inspection import thumbnail
from dsctl_core.data.summary import captions_table
from dsctl_core.data.validated import Problem, Validation
from dsctl_core.data.video import is_clip
from dsctl_core.readable import counted, readable_bytes
from dsctl_core.remote import anywhere
from dsctl_core.report.clips import clip_url
from dsctl_core.report.html import data_url, render

if TYPE_CHECKING:
    from pandas import Series

MOST_PROBLEMS, MOST_PICTURES, BARS = 2000, 48, 24
SIDE = 160  # of a clip, in pixels


def report_page(found: Validation, summary: Mapping[str, Any], title: str, videos: bool) -> str:
    """Return the HTML page for the validation `found`, with its `summary`; `videos` is whether files are videos."""
    usable = list(found.files)
    sample = usable[:: max(len(usable) // 24, 1)][:24]
    errors, warnings, cached = summary["errors"], summary["warnings"], summary["cache_bytes"]
    words = histogram(captions_table(found)["words"])
    charts = [
        ("Sizes of the files", _bars(summary["resolutions"])),
        ("Sizes trained at", _bars(summary["buckets"])),
        ("Words in a caption", _bars(words)),
    ]
    return render(
        "dataset.html.j2",
        title,
        verdict="No problem found."
        if not found.problems
        else f"{counted(errors, 'error')}, {counted(warnings, 'warning')}.",
        summary=summary,
        file_bytes=readable_bytes(summary["file_bytes"]),
        cache_bytes=None if cached is None else readable_bytes(cached),
        problems=[
            _problem(problem, videos, with_picture=number < MOST_PICTURES)
            for number, problem in enumerate(found.problems[:MOST_PROBLEMS])
        ],
        more_problems=max(len(found.problems) - MOST_PROBLEMS, 0),
        charts=charts,
        sample=_pictures(sample, found, videos),
    )


def _problem(problem: Problem, videos: bool, *, with_picture: bool) -> dict[str, Any]:
    data = thumbnail(Path(problem.file), videos) if problem.file and with_picture else None
    return {
        "row": problem.row or "",
        "level": problem.level,
        "kind": problem.kind,
        "message": problem.message,
        "hint": problem.hint,
        "source": None if data is None else data_url(data, "image/jpeg"),
    }


def _pictures(paths: list[Path], found: Validation, videos: bool) -> list[dict[str, str]]:
    figures = []
    for path in paths:
        source = _shown(path, videos)
        if source is not None:
            prompts = found.samples[found.rows_of[path][0]].prompts
            caption = prompts[0][:200] if prompts else ""
            figures.append({"alt": "", "source": source, "name": path.name, "path": str(path), "caption": caption})
    return figures


def _shown(path: Path, videos: bool) -> str | None:
    """Return a data: URL of a small picture or clip; None if the file cannot be decoded."""
    if videos and (is_clip(path) or anywhere.is_dir(path)):
        return clip_url(path, SIDE)
    data = thumbnail(path, videos)
    return None if data is None else data_url(data, "image/jpeg")


def histogram(values: Series) -> dict[str, int]:
    """Return how many of some whole numbers there are in each of at most 16 equal ranges."""
    if values.empty:
        return {}
    low, high = int(values.min()), int(values.max())
    step = max(-(-(high - low + 1) // 16), 1)
    firsts = range(low, high + 1, step)
    counts = ((values - low) // step).value_counts().reindex(range(len(firsts)), fill_value=0)
    names = [str(first) if step == 1 else f"{first} to {first + step - 1}" for first in firsts]
    return dict(zip(names, counts.tolist(), strict=True))


def _bars(counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the bars of a chart, at most BARS, and the number of bars that are left out."""
    shown = list(counts.items())[:BARS]
    most = max(counts.values(), default=0)
    bars = [{"name": name, "count": count, "percent": f"{100 * count / most:.1f}"} for name, count in shown]
    return {"bars": bars, "more": len(counts) - len(shown)}
