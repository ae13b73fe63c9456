"""Arrange the samples of a run in a table, with a row per prompt and a column per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsctl_core.files.json import read_line
from dsctl_core.media.made_file import CLIP_SUFFIXES, about_made
from dsctl_core.report.clips import sample_url
from dsctl_core.report.html import image_url

MOST_STEPS, MOST_PROMPTS = 10, 12  # maximum numbers of columns and rows
SIDE = 224  # side of an image, in pixels


@dataclass(frozen=True)
class Cell:
    """An image or clip of the grid: its data: URL, and its alternative text."""

    source: str
    alt: str


@dataclass(frozen=True)
class Row:
    """The samples of one prompt, with a cell per step, which is None if the image is missing."""

    prompt: str
    settings: str
    cells: list[Cell | None]


@dataclass(frozen=True)
class SampleGrid:
    """The samples of a run; `more` is the number of prompts that are left out."""

    steps: list[int]
    rows: list[Row]
    more: int


def sample_grid(samples: Mapping[int, Mapping[int, Path]]) -> SampleGrid | None:
    """Return the grid of `samples`, which are paths by number and step; None if there are no samples."""
    steps = chosen(sorted({step for pictures in samples.values() for step in pictures}))
    if not steps:
        return None
    rows = [_row(number, samples[number], steps) for number in sorted(samples)[:MOST_PROMPTS]]
    return SampleGrid(steps, rows, len(samples) - len(rows))


def chosen(steps: Sequence[int]) -> list[int]:
    """Return at most MOST_STEPS evenly spaced `steps`, with the first and the last."""
    if len(steps) <= MOST_STEPS:
        return list(steps)
    last = len(steps) - 1
    return [steps[round(number * last / (MOST_STEPS - 1))] for number in range(MOST_STEPS)]


def _row(number: int, pictures: Mapping[int, Path], steps: Sequence[int]) -> Row:
    metadata: dict[str, Any] = {}
    cells: list[Cell | None] = []
    for step in steps:
        source, own = _read(pictures.get(step))
        metadata = own or metadata
        cells.append(None if source is None else Cell(source, f"sample {number}, step {step}"))
    return Row(str(metadata.get("prompt", number)), settings_of(metadata), cells)


def settings_of(metadata: Mapping[str, Any]) -> str:
    """Return seed, size and guidance of a sample as text, as far as its metadata has them."""
    settings = [f"seed {metadata['seed']}"] if "seed" in metadata else []
    settings += [f"{metadata['width']}x{metadata['height']}"] if {"width", "height"} <= metadata.keys() else []
    guidance = metadata.get("cfg_scale")
    scales = guidance if isinstance(guidance, list) else [guidance]  # a list has one for each denoiser
    if all(isinstance(scale, int | float) for scale in scales):
        settings.append(f"cfg {', '.join(f'{scale:g}' for scale in scales)}")
    return ", ".join(settings)


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a sample, from its head alone; {} if the file is missing or damaged."""
    from PIL import Image

    if path.suffix in CLIP_SUFFIXES:
        return about_made(path)
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            return read_line(opened.info.get("parameters", "{}")) or {}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return {}


def _read(path: Path | None) -> tuple[str | None, dict[str, Any]]:
    """Return a data: URL of an image or clip, and its metadata; (None, {}) if the file is missing or damaged."""
    from PIL import Image

    if path is None:
        return None, {}
    if path.suffix in CLIP_SUFFIXES:
        about = about_made(path)
        fps = about.get("fps")
        if isinstance(fps, int | float) and 1 <= fps <= 1000:
            return sample_url(path, fps, SIDE), about
        return None, {}
    try:
        with Image.open(path) as opened:
            opened.load()
            return image_url(opened, SIDE), read_line(opened.info.get("parameters", "{}")) or {}
    except (OSError, ValueError, SyntaxError):
        return None, {}
