"""The samples of a run as a table: a row for each prompt, a column for each step."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dsctl_core.report.html import picture

MOST_STEPS, MOST_PROMPTS = 10, 12  # that are shown
SIDE = 224  # of a picture, in pixels


def sample_grid(samples: Mapping[int, Mapping[int, Path]]) -> str:
    """Return the table, or nothing where there are no samples."""
    steps = chosen(sorted({step for pictures in samples.values() for step in pictures}))
    if not steps:
        return ""
    head = "".join(f"<th>step {step}</th>" for step in steps)
    rows = [_row(number, samples[number], steps) for number in sorted(samples)[:MOST_PROMPTS]]
    more = len(samples) - len(rows)
    rest = f'<p class="soft">... and {more} more prompts.</p>' if more > 0 else ""
    return f'<div class="scroll"><table class="samples"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>{rest}'


def chosen(steps: Sequence[int]) -> list[int]:
    """Return the first and the last of `steps`, and what lies evenly between them, at most MOST_STEPS."""
    if len(steps) <= MOST_STEPS:
        return list(steps)
    last = len(steps) - 1
    return [steps[round(number * last / (MOST_STEPS - 1))] for number in range(MOST_STEPS)]


def _row(number: int, pictures: Mapping[int, Path], steps: Sequence[int]) -> str:
    told: dict[str, Any] = {}
    cells = []
    for step in steps:
        image, about = _read(pictures.get(step))
        told = about or told
        cells.append(f"<td>{picture(image, SIDE, f'sample {number}, step {step}') if image is not None else ''}</td>")
    settings = [f"seed {told['seed']}"] if "seed" in told else []
    settings += [f"{told['width']}x{told['height']}"] if {"width", "height"} <= told.keys() else []
    settings += [f"cfg {told['cfg_scale']:g}"] if isinstance(told.get("cfg_scale"), int | float) else []
    words = f'{escape(str(told.get("prompt", number)))}<br><span class="soft">{escape(", ".join(settings))}</span>'
    return f'<tr><td class="prompt">{words}</td>{"".join(cells)}</tr>'


def _read(path: Path | None) -> tuple[Any, dict[str, Any]]:
    """Return a picture and what it says about itself; nothing where it is missing or damaged."""
    from PIL import Image

    if path is None:
        return None, {}
    try:
        with Image.open(path) as opened:
            opened.load()
            about = json.loads(opened.info.get("parameters", "{}"))
            return opened.copy(), about if isinstance(about, dict) else {}
    except (OSError, ValueError, SyntaxError):
        return None, {}
