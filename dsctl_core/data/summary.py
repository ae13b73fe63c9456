"""Summarize a validated dataset: sizes, buckets, captions, duplicates, and the estimated size of its cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dsctl_core.data.pair_checks import REFERENCES
from dsctl_core.data.validated import Validation
from dsctl_core.readable import counted, readable_bytes

if TYPE_CHECKING:
    from pandas import DataFrame, Series

SHOWN = 12


@dataclass(frozen=True)
class CacheBytes:
    """Estimates of bytes in a cache: of a picture or clip from (width, height, frames), and of a prompt's characters.

    `reference` is that of a reference picture from (width, height), and `shared_prompts` says whether rows with equal
    prompts share an entry although their references differ.
    """

    picture: Callable[[int, int, int], int]
    reference: Callable[[int, int], int]
    prompt: Callable[[int], int]
    shared_prompts: bool = True


def summarize(found: Validation, cache_bytes: CacheBytes | None = None) -> dict[str, Any]:
    """Return the statistics of a validated dataset. With `cache_bytes` they include the size of a cache of it."""
    import pandas as pd

    files, captions = files_table(found), captions_table(found)
    kinds = Counter(problem.kind for problem in found.problems)
    buckets = [shown(tuple(sample.sizes)) for sample in found.samples if sample.sizes for _ in range(sample.clips)]
    return {
        "layout": found.layout,
        "rows": found.rows,
        "errors": found.count("error"),
        "warnings": found.count("warning"),
        "problems_by_kind": dict(sorted(kinds.items())),
        "left_out": dict(found.left_out.suffixes),
        "notes": list(found.notes),
        "files": len(files),
        "file_bytes": int(files["bytes"].sum()),
        "resolutions": _counted(files["size"]),
        "buckets": _counted(pd.Series(buckets, dtype="object")),
        "caption_characters": spread(captions["characters"]),
        "caption_words": spread(captions["words"]),
        "duplicates": {kind: kinds.get(kind, 0) for kind in ("same bytes", "same picture", "same row")},
        "cache_bytes": None if cache_bytes is None else _cached(found, cache_bytes),
    }


def files_table(found: Validation) -> DataFrame:
    """Return the files that could be decoded: a row for each, its `size` as text and its `bytes`."""
    import pandas as pd

    facts = found.files.values()
    sizes = pd.Series([shown(each.size) for each in facts], dtype="object")
    return pd.DataFrame({"size": sizes, "bytes": pd.Series([each.file_bytes for each in facts], dtype="int64")})


def captions_table(found: Validation) -> DataFrame:
    """Return the captions of all rows: a row for each, with its number of `characters` and of `words`."""
    import pandas as pd

    prompts = [prompt for sample in found.samples for prompt in sample.prompts]
    lengths = [(len(prompt), len(prompt.split())) for prompt in prompts]
    return pd.DataFrame(lengths, columns=["characters", "words"], dtype="int64")


def spread(values: Series) -> dict[str, float] | None:
    """Return the minimum, median, mean and maximum of whole numbers; None if there are none."""
    if values.empty:
        return None
    return {
        "min": int(values.min()),
        "median": float(values.median()),
        "mean": round(float(values.mean()), 1),
        "max": int(values.max()),
    }


def _counted(sizes: Series) -> dict[str, int]:
    """Return the number of occurrences of each size, the most frequent first, then the one that comes first."""
    counts = sizes.groupby(sizes, sort=False).size().sort_values(ascending=False, kind="stable")
    return {str(size): int(count) for size, count in counts.items()}


def shown(size: Any) -> str:
    """Return a size as text: 512x768 for an image, 512x768x81 for a video, joined by " + " for several files."""
    return "x".join(map(str, size)) if isinstance(size[0], int) else " + ".join(map(shown, size))


def _cached(found: Validation, cache_bytes: CacheBytes) -> int:
    """Return the estimated bytes of a cache of the usable rows; a prompt of several rows is stored once."""
    total = 0
    prompts: set[tuple[int | None, str]] = set()
    for sample in found.samples:
        for key, size in zip(sample.keys, sample.sizes, strict=True):
            frames = size[2] if len(size) > 2 else 1
            of_reference = key == REFERENCES
            own = cache_bytes.reference(*size[:2]) if of_reference else cache_bytes.picture(size[0], size[1], frames)
            total += sample.clips * own
        own_prompts = REFERENCES in sample.keys and not cache_bytes.shared_prompts
        prompts.update((sample.number if own_prompts else None, prompt) for prompt in sample.prompts)
    return total + sum(cache_bytes.prompt(len(prompt)) for _, prompt in prompts)


def lines_of(found: Validation, summary: dict[str, Any], per_kind: int = 20) -> list[str]:
    """Return lines of text: the problems by kind, at most `per_kind` of each, then the summary."""
    lines = []
    for kind in sorted({problem.kind for problem in found.problems}):
        problems = [problem for problem in found.problems if problem.kind == kind]
        lines.append(f"{kind}: {len(problems)}")
        for problem in problems[:per_kind]:
            hint = f" ({problem.hint})" if problem.hint else ""
            lines.append(f"  {problem.level}: {problem.message}{hint}")
        if len(problems) > per_kind:
            lines.append(f"  ... and {len(problems) - per_kind} more; --json and --report show all")
    return [*lines, *_summary_lines(summary)]


def _summary_lines(summary: dict[str, Any]) -> list[str]:
    lines = [f"{counted(summary['rows'], 'row')} in a {summary['layout']}" if summary["layout"] else "no rows"]
    lines += summary["notes"]
    if summary["files"]:
        lines.append(f"{counted(summary['files'], 'file')}, {readable_bytes(summary['file_bytes'])}")
    for name, title in (("resolutions", "sizes"), ("buckets", "trained at")):
        sizes = summary[name]
        if sizes:
            parts = [f"{size}: {count}" for size, count in list(sizes.items())[:SHOWN]]
            more = f", and {counted(len(sizes) - SHOWN, 'other size')}" if len(sizes) > SHOWN else ""
            lines.append(f"{title}  {', '.join(parts)}{more}")
    words = summary["caption_words"]
    if words:
        least, most = words["min"], words["max"]
        half = f"{least} to {counted(most, 'word')}, half of them of at most {words['median']:g}"
        lines.append(f"captions  {half if least < most else counted(most, 'word') + ' each'}")
    if summary["cache_bytes"] is not None:
        lines.append(f"cache  about {readable_bytes(summary['cache_bytes'])} in bfloat16")
    errors, warnings = summary["errors"], summary["warnings"]
    lines.append(
        "no problem found"
        if not errors and not warnings
        else f"{counted(errors, 'error')}, {counted(warnings, 'warning')}"
    )
    return lines
