"""`dsctl dataset validate`: check a dataset, or a cache, and write a page about it. Of a dataset without torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsctl_core.cache.manifest import INDEX_FILE, MANIFEST_FILE
from dsctl_core.data import UnifiedDataset
from dsctl_core.data.build import build_resize
from dsctl_core.data.captions import Captions
from dsctl_core.data.dataset import SINGLE_COLUMNS
from dsctl_core.data.frame_rule import FrameRule
from dsctl_core.data.known_files import KnownFiles
from dsctl_core.data.masks import MASK
from dsctl_core.data.metadata import READERS
from dsctl_core.data.problems import DataError
from dsctl_core.data.summary import CacheBytes, lines_of, summarize
from dsctl_core.data.validated import Checks, Level, Problem, Validation, joined, unreadable_dataset
from dsctl_core.data.validation import validate_dataset
from dsctl_core.errors import UsageError
from dsctl_core.families import families
from dsctl_core.families.prompt_lengths import find_cut_prompts
from dsctl_core.families.resolve import ResolvedModel, resolve_model
from dsctl_core.family import Family
from dsctl_core.files.atomic import prepare_folder, write_text
from dsctl_core.files.json import checked, read_json
from dsctl_core.files.ownership import require_replaceable
from dsctl_core.options import DatasetValidateOptions, ReadingOptions
from dsctl_core.options.data import with_table
from dsctl_core.options.datasets import DatasetTable, read_tables
from dsctl_core.options.effects import OF_A_DATASET, SEVERAL_DATASETS, WITHOUT_REPORT
from dsctl_core.options.model_effects import PICTURES_ONLY
from dsctl_core.progress import NoProgress, Progress
from dsctl_core.readable import counted, readable_bytes
from dsctl_core.remote import anywhere
from dsctl_core.remote.address import is_remote, shown
from dsctl_core.remote.archives import TAR
from dsctl_core.remote.local import limit_disk
from dsctl_core.remote.lookup import look_again
from dsctl_core.report.dataset import report_page
from dsctl_core.report.html import CACHE_PAGE, DATASET_PAGE, PAGE_KINDS

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
    if resolved is not None and resolved.family.time_division is None:
        PICTURES_ONLY.refuse(options, title=resolved.family.title)
    limit_disk(options.reading.remote_cache_gb)
    base, table = options.path, options.metadata
    tables = read_tables(base, "PATH") if base.suffix.lower() == ".toml" else ()
    if tables:
        SEVERAL_DATASETS.refuse(options)
    is_table = base.suffix.lower() in READERS if is_remote(base) else base.is_file() and base.suffix != TAR
    if table is None and not tables and is_table:
        base, table = base.parent, base
    look_again()
    sought = not tables and (table is None or options.metadata is not None)
    cached = sought and any(anywhere.is_file(base / name) for name in (MANIFEST_FILE, INDEX_FILE))
    if cached:
        OF_A_DATASET.refuse(options)
        if options.report is None:
            WITHOUT_REPORT.refuse(options)
    if options.report is not None:
        if options.report.suffix.lower() not in (".html", ".htm"):
            raise UsageError(f"--report is {str(options.report)!r}, which is no page", hint="give it a name in .html")
        require_replaceable(options.report, PAGE_KINDS[CACHE_PAGE if cached else DATASET_PAGE], "--report")
        prepare_folder(options.report.parent)
    if cached:
        return _finished(_validated_cache(base, options, progress), None, options.strict)
    check = _Check(options.reading, options.workers, resolved, progress, options.recheck)
    found = joined({each.label: check.of_table(each) for each in tables}) if tables else check.one(base, table)
    result = _finished(found, None if resolved is None else _cache_bytes(resolved), options.strict)
    if options.report is not None:
        videos = resolved is None or resolved.family.time_division is not None
        page = report_page(found, result.summary, f"Dataset {shown(options.path)}", videos=videos)
        write_text(options.report, page)
    return result


@dataclass(frozen=True)
class _Check:
    """How a dataset is checked; several of them by their tables, which leave to `reading` what they do not say."""

    reading: ReadingOptions
    workers: int | None
    resolved: ResolvedModel | None
    progress: Progress
    recheck: bool

    def of_table(self, table: DatasetTable) -> Validation:
        """Return the problems of the dataset of a table."""
        words = Captions(table.caption_prefix or "", table.caption_suffix or "")
        own = replace(self, reading=with_table(self.reading, table))
        return own.one(table.path, table.metadata, words, table.caption)

    def one(
        self, base: Path, table: Path | None, captions: Captions | None = None, caption: str | None = None
    ) -> Validation:
        """Return the problems of a dataset."""
        checks = _checks(self.reading, self.workers, self.resolved)
        try:
            dataset = UnifiedDataset(
                base,
                table,
                data_file_keys=self.reading.data_file_keys,
                columns=self.reading.columns,
                allow_outside=self.reading.allow_outside,
                optional_keys=_optional_keys(self.resolved),
                single_keys=(*SINGLE_COLUMNS, *_along_keys(self.resolved)),
                list_keys=_list_keys(self.resolved),
                along_keys=_along_keys(self.resolved),
                whole_keys={name for family in _possible(self.resolved) for name in family.whole_inputs},
                aligned_keys=_aligned_keys(self.resolved, self.reading.data_file_keys),
                companions={k: other for f in _possible(self.resolved) for k, other in f.companion_inputs.items()},
                captions=captions,
                caption=caption,
                frame_keys=_frame_keys(self.resolved),
                known=KnownFiles(base, remember=True, recheck=self.recheck),
            )
        except DataError as error:
            return unreadable_dataset(error)
        found = validate_dataset(dataset, checks, self.progress)
        if self.resolved is not None:
            _add_cut_prompts(found, dataset, self.resolved)
        return found


def _possible(resolved: ResolvedModel | None) -> Collection[Family]:
    """Return the family of the model; without a model, all families."""
    return [resolved.family] if resolved is not None else families().values()


def _list_keys(resolved: ResolvedModel | None) -> set[str]:
    """Return the columns that hold several files in a row."""
    return {name for family in _possible(resolved) for name in family.list_inputs}


def _along_keys(resolved: ResolvedModel | None) -> dict[str, bool]:
    """Return the columns that go along with the target, with whether a single picture is that of all frames."""
    return {name: still for family in _possible(resolved) for name, still in family.along_inputs.items()}


def _aligned_keys(resolved: ResolvedModel | None, keys: Collection[str]) -> set[str]:
    """Return the columns of pictures that lie on each other, if one of the columns `keys` holds several files."""
    stacked = _list_keys(resolved) & set(keys)
    return {name for family in _possible(resolved) for name in family.aligned_inputs} if stacked else set()


def _frame_keys(resolved: ResolvedModel | None) -> set[str]:
    """Return the columns of pictures that are a frame of a clip."""
    return {name for family in _possible(resolved) for name in family.frame_columns}


def _optional_keys(resolved: ResolvedModel | None) -> set[str]:
    """Return the columns that the model lets a row leave empty, masks too; without a model, those of any family."""
    return {MASK, *(name for family in _possible(resolved) for name in family.optional_inputs)}


def _add_cut_prompts(found: Validation, dataset: UnifiedDataset, resolved: ResolvedModel) -> None:
    """Add a warning for each row with a prompt that the model cuts."""
    cut = find_cut_prompts(resolved, [prompt for sample in found.samples for prompt in sample.prompts])
    for sample in found.samples:
        for prompt in sample.prompts:
            if prompt in cut.tokens:
                message = f"{dataset.location(sample.number)}: {cut.problem(prompt)}"
                hint = "shorten the caption, or put what matters first"
                found.problems.append(Problem("cut caption", "warning", message, hint, sample.number + 1))
    if (note := cut.note_of_unchecked()) is not None:
        found.notes = (*found.notes, note)


def _finished(found: Validation, cache_bytes: CacheBytes | None, strict: bool) -> ValidateResult:
    summary = summarize(found, cache_bytes)
    bad = summary["errors"] + (summary["warnings"] if strict else 0)
    return ValidateResult(found, summary, clean=not bad)


def _validated_cache(folder: Path, options: DatasetValidateOptions, progress: Progress) -> Validation:
    """Return the problems of a cache, whose bytes are all read, and write the report if one is asked for.

    This needs torch.
    """
    from dsctl_core.commands.validate_cache import validate_cache

    progress.start("Reading the cache", None)
    found = validate_cache(folder, options.report, options.model)
    progress.finish()
    problems = []
    for each in found.problems:
        level: Level = "warning" if each.harmless else "error"
        row = None if each.row is None else each.row + 1
        problems.append(Problem(each.kind, level, each.message, each.hint, row, str(each.file)))
    if not found.summary:
        return Validation(0, "", problems, [], {}, {})
    entries, size = found.summary["entries"], readable_bytes(found.summary["bytes"])
    return Validation(
        entries,
        f"cache of {counted(entries, 'entry', 'entries')} for {found.summary['family']}, {size}",
        problems,
        [],
        {},
        {},
    )


def _checks(reading: ReadingOptions, workers: int | None, resolved: ResolvedModel | None) -> Checks:
    """Return what the files must be fit for: one model, or where none is given any that there is."""
    if resolved is None:
        resize = build_resize(reading, DIVISION_FACTOR, None)
        rule = FrameRule(reading.num_frames, 1, 0, reading.fps, reading.short_clips, reading.clip_extraction)
        return Checks(resize, rule, workers)
    resize = build_resize(reading, resolved.parts.division_factor, resolved.defaults.get("max_pixels"))
    division = resolved.family.time_division
    if division is None:
        return Checks(resize, None, workers)
    count = reading.num_frames or resolved.defaults.get("num_frames", 81)
    rule = FrameRule(count, *division, reading.fps, reading.short_clips, reading.clip_extraction)
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
            own = read_json(file)
            sizes = {name: own[name] for name, value in config.items() if type(value) is int and name in own}
            config = {**config, **checked(sizes, dict[str, int], str(file))}

    def picture(width: int, height: int, frames: int) -> int:
        return reckon_with(config, width, height, frames, 0)[0]

    def reference(width: int, height: int) -> int:
        own = family.reference_bytes
        return picture(width, height, 1) if own is None else own(resolved.parts, config, width, height)

    def prompt(characters: int) -> int:
        return reckon_with(config, 0, 0, 0, characters)[1]

    return CacheBytes(picture, reference, prompt, shared_prompts=family.reference_bytes is None)
