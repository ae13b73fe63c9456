"""`dsctl dataset validate`: check a dataset, or a cache, and write a page about it. Of a dataset without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsctl_core.cache.manifest import INDEX_FILE, MANIFEST_FILE, read_manifest
from dsctl_core.data import UnifiedDataset
from dsctl_core.data.build import build_resize
from dsctl_core.data.problems import DataError
from dsctl_core.data.summary import CacheBytes, lines_of, summarize
from dsctl_core.data.validation import Checks, Level, Problem, Validation, unreadable_dataset, validate_dataset
from dsctl_core.data.video import FrameRule
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.resolve import ResolvedModel, resolve_model
from dsctl_core.files.atomic import prepare_folder, write_text
from dsctl_core.options import DatasetValidateOptions, ReadingOptions
from dsctl_core.progress import NoProgress, Progress
from dsctl_core.readable import readable_bytes
from dsctl_core.report.dataset import report_page

DIVISION_FACTOR = 16  # of the families that there are, where no --model says which one it will be


@dataclass(frozen=True)
class ValidateResult:
    """The findings of a validation; `clean` is true if the dataset can be used as it is."""

    found: Validation
    summary: dict[str, Any]
    clean: bool

    def lines(self) -> list[str]:
        """Return the problems by kind, then the summary, as text."""
        return lines_of(self.found, self.summary)


def validate(options: DatasetValidateOptions, progress: Progress | None = None) -> ValidateResult:
    """Check a dataset, write the report if one is asked for, and return what was found."""
    progress = progress or NoProgress()
    resolved = None if options.model is None else resolve_model(options.model)
    checks = _checks(options.reading, options.workers, resolved)
    if options.report is not None:
        if options.report.suffix.lower() not in (".html", ".htm"):
            raise UsageError(f"--report is {str(options.report)!r}, which is no page", hint="give it a name in .html")
        prepare_folder(options.report.parent)
    base, table = options.path, options.metadata
    if base.is_file() and table is None:
        base, table = base.parent, base
    if (base / MANIFEST_FILE).is_file() or (base / INDEX_FILE).is_file():
        if options.report is not None:  # the page of a cache has pictures of its own: from the latents
            from dsctl_core.commands.validate_cache import validate_cache

            validate_cache(base, options.report, options.model)
        return _finished(_validated_cache(base, progress), None, options.strict)
    try:
        dataset = UnifiedDataset(
            base,
            table,
            data_file_keys=options.reading.data_file_keys,
            columns=options.reading.columns,
            allow_outside=options.reading.allow_outside,
            optional_columns=() if resolved is None else resolved.family.optional_columns,
        )
    except DataError as error:
        found = unreadable_dataset(error)
    else:
        found = validate_dataset(dataset, checks, progress)
    result = _finished(found, None if resolved is None else _cache_bytes(resolved), options.strict)
    if options.report is not None:
        page = report_page(found, result.summary, f"Dataset {options.path}", videos=checks.frames is not None)
        write_text(options.report, page)
    return result


def _finished(found: Validation, cache_bytes: CacheBytes | None, strict: bool) -> ValidateResult:
    summary = summarize(found, cache_bytes)
    bad = summary["errors"] + (summary["warnings"] if strict else 0)
    return ValidateResult(found, summary, clean=not bad)


def _validated_cache(folder: Path, progress: Progress) -> Validation:
    """Return what is wrong with a cache: every byte of it is read. This needs torch."""
    from dsctl_core.cache.verify import find_problems

    progress.start("Reading the cache", None)
    problems = []
    for each in find_problems(folder):
        level: Level = "warning" if each.kind == "left over" else "error"
        row = None if each.row is None else each.row + 1
        problems.append(Problem(each.kind, level, each.message, each.hint, row, str(each.file)))
    progress.finish()
    try:
        manifest = read_manifest(folder)
    except DsctlError:
        return Validation(0, "", problems, [], {}, {})
    entries = manifest.counts["entries"]
    layout = f"cache of {entries} entries for {manifest.recipe.family}, {readable_bytes(manifest.bytes['shards'])}"
    return Validation(entries, layout, problems, [], {}, {})


def _checks(reading: ReadingOptions, workers: int | None, resolved: ResolvedModel | None) -> Checks:
    """Return what the files must be fit for: one model, or where none is given any that there is."""
    if resolved is None:
        resize = build_resize(reading, DIVISION_FACTOR, None)
        rule = FrameRule(reading.num_frames, 1, 0, reading.fps, reading.short_clips)
        return Checks(resize, rule, workers)
    resize = build_resize(reading, resolved.parts.division_factor, resolved.defaults.get("max_pixels"))
    division = resolved.family.time_division
    if division is None:
        return Checks(resize, None, workers)
    count = reading.num_frames or resolved.defaults.get("num_frames", 81)
    rule = FrameRule(count, *division, reading.fps, reading.short_clips)
    return Checks(resize, rule, workers)


def _cache_bytes(resolved: ResolvedModel) -> CacheBytes | None:
    """Return how to reckon with the sizes of the denoiser, from its config where it is at hand."""
    family = resolved.family
    reckon_with = family.cache_bytes
    if reckon_with is None:
        return None
    denoiser = family.denoisers[0].name
    config = family.sizes(denoiser, resolved.preset.variant if resolved.preset else None)
    folders = [Path(path) for each in resolved.model_configs for path in (each.path,) if isinstance(path, str | Path)]
    for folder in folders:
        file = folder / family.component(denoiser).folder / "config.json"
        if file.is_file():
            try:
                config = {**config, **json.loads(file.read_text(encoding="utf-8"))}
            except ValueError as error:
                raise DsctlError(f"{file} is no JSON: {error}", hint="restore it from where it came") from error

    def reckon(width: int, height: int, frames: int, characters: int) -> tuple[int, int]:
        return reckon_with(config, width, height, frames, characters)

    return reckon
