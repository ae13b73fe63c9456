"""Open the samples of a run, a checked dataset or a cache, together with their model."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.data import DatasetError, UnifiedDataset, check_dataset, usable_part
from dsctl_core.data.build import build_dataset, refuse_file_names
from dsctl_core.data.looking import look_at_files
from dsctl_core.data.masks import MASK
from dsctl_core.families.prompt_lengths import cut_prompt_notes
from dsctl_core.families.resolve import ResolvedModel, resolve_model
from dsctl_core.losses import Loss, find_loss
from dsctl_core.losses.columns import refuse_unreadable, unreadable_rows, with_columns_alike
from dsctl_core.options import TrainOptions
from dsctl_core.options.data import DataOptions
from dsctl_core.options.effects import CACHE_WITHOUT_TEMPLATE, DRAWS_NO_LEVELS
from dsctl_core.options.model_effects import PICTURES_ONLY
from dsctl_core.options.template import INPUTS as TEMPLATE_COLUMN
from dsctl_core.options.template import TemplateSource
from dsctl_core.options.training import TrainingOptions
from dsctl_core.progress import Progress
from dsctl_core.remote.address import shown
from dsctl_core.remote.local import limit_disk
from dsctl_core.training.model.open import ModelUse, open_model, refuse_unread_files, with_controls, with_template
from dsctl_core.training.model.task_module import TaskModule, objective_of
from dsctl_core.training.output.skipped import SkippedRows
from dsctl_core.training.plan.cache_check import CacheCheck

Source = UnifiedDataset | CachedDataset
MOST_PROBLEMS = 1000  # the most problems of a dataset that are listed


def open_cache(options: TrainOptions, use: ModelUse) -> tuple[CachedDataset, ResolvedModel]:
    """Return the cache to train from, with the model and template of the options, else those of the cache.

    Raises a CacheMismatch for a cache that does not match the run.
    """
    assert options.cache_folder is not None
    limit_disk(options.data.remote_cache_gb)
    cached = CachedDataset(options.cache_folder, options.data.dataset_repeat)
    recipe, check = cached.manifest.recipe, CacheCheck(cached, options.weights, options.data)
    made_with = recipe.model.get("template")
    template = options.templates.template or (None if made_with is None else TemplateSource.parse(made_with))
    if template is None:
        CACHE_WITHOUT_TEMPLATE.refuse(options, folder=shown(cached.folder))
    trusted, required = options.templates.trust_template, TEMPLATE_COLUMN in options.data.extra_inputs
    named = resolve_model(**check.model_names())
    if named.family.time_division is None:
        PICTURES_ONLY.refuse(options, title=named.family.title)
    resolved = with_controls(with_template(named, template, use, trusted=trusted, required=required), use)
    resolved = replace(resolved, masked=MASK in recipe.extra_inputs)
    check.refuse_misfit(resolved, options.loss_task if options.given("task") else None)
    refuse_undrawn_levels(options, find_loss(recipe.task))
    objective_of(options.objective).check(resolved.family)
    return cached, resolved


def open_dataset(
    options: TrainOptions, use: ModelUse, skipped: SkippedRows, progress: Progress, *, offline: bool = False
) -> tuple[UnifiedDataset, ResolvedModel]:
    """Return the checked dataset, and the model of the options.

    Rows with a prompt that the model cuts are noted; the tokenizer that finds them may be downloaded unless `offline`.
    """
    resolved = open_model(options.weights, options.templates, use, options.data.extra_inputs, options.loss_task)
    loss = find_loss(options.loss_task)
    refuse_undrawn_levels(options, loss)
    objective_of(options.objective).check(resolved.family)
    # A dry run writes nothing, so it does not remember either.
    dataset = checked_dataset(
        options.data,
        resolved,
        loss,
        skipped,
        progress,
        remember=not offline,
        hashed=lambda dataset: not offline and _is_encoded(options, dataset),
    )
    for note in cut_prompt_notes(dataset, resolved, download=not offline):
        progress.note(note)
    return dataset, resolved


def refuse_undrawn_levels(options: TrainOptions, loss: Loss) -> None:
    """Raise a UsageError for options of how noise levels are drawn, with a loss that draws none."""
    if not loss.draws_levels:
        DRAWS_NO_LEVELS.refuse(options, task=loss.task)


def checked_dataset(
    options: DataOptions,
    resolved: ResolvedModel,
    loss: Loss,
    skipped: SkippedRows,
    progress: Progress,
    *,
    remember: bool = False,
    hashed: Callable[[UnifiedDataset], bool] = lambda dataset: False,
) -> UnifiedDataset:
    """Build and check the dataset: a row that cannot be used is an error, or is dropped and added to `skipped`.

    With `remember`, what is found out about its files is kept in the user's cache folder, and used where it is there.
    `hashed` says whether the bytes of all files will be hashed, so that this is done while they are open.
    """
    pictures, factor = resolved.picture_columns, resolved.parts.division_factor
    dataset = build_dataset(options, resolved.family, resolved.defaults, factor, pictures, remember=remember)
    refuse_file_names(dataset, options.extra_inputs)
    refuse_unread_files(dataset, options.extra_inputs, resolved, loss.task)
    look_at_files(dataset, progress, whole=hashed(dataset))
    for note in dataset.notes():
        progress.note(note)
    if options.on_bad_sample == "stop":
        try:
            check_dataset(dataset, progress, limit=MOST_PROBLEMS)
        except DatasetError as error:
            for problem in error.problems if len(error.problems) > 1 else ():
                progress.note(problem.problem)
            raise
        refuse_unreadable(dataset, loss)
        return dataset
    usable, problems = usable_part(dataset, progress)
    unread = unreadable_rows(usable, loss)
    for problem in problems:
        skipped.add(problem)
    for unreadable in unread.values():
        skipped.add(unreadable)
    return usable.without(unread) if unread else usable


def _is_encoded(options: TrainOptions, dataset: UnifiedDataset) -> bool:
    """Return whether the run will most likely make a cache of the dataset, whose entries are found by file digests."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return options.caching.cache and not dataset.varies() and samples_repeat(options.training, dataset, processes)


def samples_repeat(options: TrainingOptions, dataset: UnifiedDataset, processes: int) -> bool:
    """Return whether the run uses its samples more than once."""
    seen = options.num_epochs * len(dataset)
    if options.max_steps is not None:
        seen = options.max_steps * options.batch_size * options.gradient_accumulation_steps * processes
    return seen > len(dataset.rows_in_use)


def buckets_of(source: Source, module: TaskModule) -> list[Hashable]:
    """Return for each row a key; the rows of a batch have equal keys. In a cache, padded lengths may differ.

    Of several datasets, those of a batch have one range of noise levels and one kind of target.
    """
    if isinstance(source, CachedDataset):
        buckets = source.buckets(module.padded)
        rows: Iterable[int] = (entry.row for entry in source.entries)
    else:
        buckets, rows = with_columns_alike(source.buckets(), source, module.loss), source.numbers
    if not source.tables:
        return buckets
    tables = (source.tables[source.table_of(row)] for row in rows)
    return [
        (bucket, each.min_timestep_boundary, each.max_timestep_boundary, each.target)
        for bucket, each in zip(buckets, tables, strict=True)
    ]
