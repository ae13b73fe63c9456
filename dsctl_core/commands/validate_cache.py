"""A cache looked at as a whole: its problems, its numbers, and a page with pictures decoded from its latents."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.cache.verify import Problem, find_problems
from dsctl_core.errors import DsctlError
from dsctl_core.families.resolve import ResolvedModel, resolve_model
from dsctl_core.files.atomic import write_text
from dsctl_core.files.ownership import require_replaceable
from dsctl_core.remote.errors import RemoteError
from dsctl_core.report.cache import cache_page
from dsctl_core.report.html import CACHE_PAGE, PAGE_KINDS

PICTURES = 12  # in a page, from all over the cache
LATENTS = "shared.input_latents"


@dataclass(frozen=True)
class CacheValidation:
    """The findings of a cache validation."""

    rows: int
    problems: tuple[Problem, ...]
    summary: dict[str, Any]

    @property
    def clean(self) -> bool:
        """Whether it can be trained from."""
        return all(problem.harmless for problem in self.problems)

    def as_json(self) -> dict[str, Any]:
        """Return it in the form in which `dsctl dataset validate --json` tells of a dataset."""
        problems = [
            {"row": each.row, "file": str(each.file), "kind": each.kind, "message": each.message, "hint": each.hint}
            for each in self.problems
        ]
        return {"rows": self.rows, "problems": problems, "summary": self.summary}

    def lines(self) -> list[str]:
        """Return it as lines of text."""
        found = [f"{problem.kind}: {problem.message}" for problem in self.problems] or ["no problem found"]
        return [*(f"{name.replace('_', ' ')}: {value}" for name, value in self.summary.items()), *found]


def validate_cache(cache: Path, report: Path | None = None, model: str | None = None) -> CacheValidation:
    """Look at every byte of the cache in the folder, or at the address, `cache`.

    `report` is a page to write; with the `model` that the cache was made with (of which only the VAE is needed) it
    shows pictures that a sample of the latents decode to.
    """
    if report is not None:
        require_replaceable(report, PAGE_KINDS[CACHE_PAGE], "--report")
    problems = tuple(find_problems(cache))
    try:
        dataset = CachedDataset(cache)
    except RemoteError:
        raise
    except DsctlError:
        unread = CacheValidation(0, problems, {})
        if report is not None:
            write_text(report, cache_page(cache, {}, problems, None, []))
        return unread
    manifest, recipe = dataset.manifest, dataset.manifest.recipe
    summary = {
        "family": recipe.family,
        "task": recipe.task,
        "dtype": recipe.dtype,
        **manifest.counts,
        "bytes": manifest.bytes["shards"],
    }
    found = CacheValidation(len(dataset.entries), problems, summary)
    if report is not None:
        pictures = decoded(dataset, resolve_model(model)) if model is not None and found.clean else []
        latents = _sizes(dataset) if found.clean else None
        write_text(report, cache_page(cache, summary, problems, latents, pictures))
    return found


def decoded(dataset: CachedDataset, resolved: ResolvedModel) -> list[tuple[int, Image.Image]]:
    """Return (row, picture) of entries from all over the cache."""
    pipe = resolved.load_pipeline(torch_dtype=torch.float32, only=["vae"])
    step = max(1, -(-len(dataset.entries) // PICTURES))
    pictures = []
    for entry in dataset.entries[::step]:
        latents = dataset.sample(entry).get(LATENTS)
        if latents is not None:
            with torch.no_grad():
                pictures.append((entry.row, pipe.decode_latents(latents)[0]))
    return pictures


def _sizes(dataset: CachedDataset) -> str:
    """Return how many entries have latents of which shape."""
    shapes = Counter(tuple(dataset.shape(entry, LATENTS)[1:]) for entry in dataset.entries)
    return ", ".join(f"{count} of {'x'.join(map(str, shape))}" for shape, count in shapes.most_common())
