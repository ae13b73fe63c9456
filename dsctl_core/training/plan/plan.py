"""Build the plan of a training from its options, for the run and for the dry run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.errors import UsageError
from dsctl_core.families.resolve import ResolvedModel
from dsctl_core.lora.files import lora_weights
from dsctl_core.losses import find_loss
from dsctl_core.memory.attention import check_backend
from dsctl_core.memory.float8 import refuse_without_float8
from dsctl_core.options import TrainOptions
from dsctl_core.options.datasets import DatasetTable
from dsctl_core.options.processes import ProcessOptions
from dsctl_core.options.training import OutputOptions, TrainingOptions
from dsctl_core.pipeline import BasePipeline
from dsctl_core.progress import Progress
from dsctl_core.stages.split import Stages, plan_stages
from dsctl_core.training.callbacks.build import CallbackPlan, plan_callbacks
from dsctl_core.training.callbacks.trackers import require_trackers
from dsctl_core.training.distributed.accelerator import leaves_mps, make_accelerator
from dsctl_core.training.model.base_target import check_tables_for
from dsctl_core.training.model.module import float_dtype
from dsctl_core.training.model.open import ModelUse, empty_pipeline, without_downloads
from dsctl_core.training.model.task_module import objective_of
from dsctl_core.training.optim.lr_schedule import LRSchedule, plan_lr_schedule, warmup_of
from dsctl_core.training.optim.optimizer import OptimizerPlan, learning_rate, plan_optimizer
from dsctl_core.training.output.folder import refuse_used
from dsctl_core.training.output.mirror import Mirror
from dsctl_core.training.output.skipped import SkippedRows
from dsctl_core.training.plan.cache_check import CacheCheck, precision_of
from dsctl_core.training.plan.encode import EncodePlan
from dsctl_core.training.plan.grouping import refuse_groups
from dsctl_core.training.plan.own_part import with_own_part
from dsctl_core.training.plan.source import Source, open_cache, open_dataset, samples_repeat
from dsctl_core.training.plan.stored import refuse_for_stored
from dsctl_core.training.state.compare import identity_of, refuse_changes
from dsctl_core.training.state.folder import AUTO, LATEST, SavedState, find_state_if_any
from dsctl_core.training.state.snapshot import ASKED

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

CACHE_FOLDER = "cache"  # in the output folder of a run that builds its own cache


@dataclass(frozen=True)
class TrainingPlan:
    """The plan of a training, checked before any weights are loaded or anything is written."""

    options: TrainOptions
    model: ResolvedModel
    use: ModelUse
    source: Source  # the samples: a dataset, or the cache to train from
    skipped: SkippedRows
    accelerator: Accelerator
    task: str
    stages: Stages
    encoding: EncodePlan | None  # of the run's own cache, which it builds if its samples repeat
    optimizer: OptimizerPlan
    lr_schedule: LRSchedule | None
    callbacks: CallbackPlan
    state: SavedState | None  # the state to resume from
    mirror: Mirror | None  # where the output folder is copied to
    identity: dict[str, Any]  # all settings and files that the results depend on

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the frozen weights."""
        return float_dtype(self.accelerator.mixed_precision)

    @property
    def cached(self) -> bool:
        """Whether training reads its samples from a cache, the run's own or another."""
        return self.encoding is not None or isinstance(self.source, CachedDataset)

    @property
    def components(self) -> tuple[str, ...] | None:
        """The components that are loaded for training, or None for all. With a cache, only those of stage two.

        Denoisers that are not trained, beside one that is, are not loaded either.
        """
        if self.cached:
            return self.stages.second_components
        idle = self.stages.idle
        names = [component.name for component in self.model.family.components]
        names += [side.name for side in self.model.side_networks]
        return tuple(name for name in names if name not in idle) if idle else None

    @property
    def own_cache(self) -> Path:
        """The folder of the run's own cache."""
        return self.options.output.output_path / CACHE_FOLDER

    @property
    def goes_on(self) -> bool:
        """Whether the run is resumed in the output folder of its state."""
        return _goes_on(self.options.output, self.state)


def plan_training(options: TrainOptions, progress: Progress, *, offline: bool = False) -> TrainingPlan:
    """Plan a training. Cheap checks come first.

    Nothing is written; with `offline`, nothing is downloaded either. The caller must call `end_training()` of the
    plan's `accelerator`. Raises DsctlError for every problem that can be found before weights are loaded.
    """
    options = with_own_part(options)
    output, training, adapter = options.output, options.training, options.adapter
    require_trackers([tracker.name for tracker in options.callbacks.track])
    mirror = None
    if output.mirror is not None:
        mirror = Mirror(output.output_path, output.mirror, output.state_total_limit)
        if output.resume in (LATEST, AUTO) and not offline:
            mirror.fetch(progress.note)
    state = find_state_if_any(output.output_path, output.resume, progress.note) if output.resume else None
    if not _goes_on(output, state):
        refuse_used(output.output_path)
    if mirror is not None and not offline:
        mirror.refuse_misfit(state if _goes_on(output, state) else None)
    for lora in adapter.lora:
        lora_weights(lora.path)
    skipped, use = SkippedRows(output.output_path), ModelUse.of_training(options)
    source, model = _open_source(options, use, skipped, progress, offline)
    refuse_epochs(source.tables, training)
    if offline:
        model = without_downloads(model)
    for name in (*options.trained_components, use.edits.lora_on):
        model.check_component(name)
    use = use.located(model)
    refuse_for_stored(options, model, use)
    rate = learning_rate(options.optim, training.trainable_models or (), model)
    optimizer = plan_optimizer(options.optim, rate)
    identity = identity_of(options, model, source, rate)
    if state is not None:
        refuse_changes(state.about["settings"], identity, output.allow_changed, state.folder)
    if options.memory.attention_backend is not None:
        check_backend(options.memory.attention_backend)
    callbacks = plan_callbacks(options, model, source, use.edits)
    accelerator = build_accelerator(
        training, options.processes, precision_of(source) if isinstance(source, CachedDataset) else None
    )
    if leaves_mps(training.device):
        progress.note("This machine has an Apple GPU, which is used with --device mps alone: training on the CPU")
    if state is not None and (accumulate := accumulation_for(state, training, accelerator.num_processes)) is not None:
        accelerator.gradient_accumulation_steps = accumulate
        progress.note(
            f"Processes: {accelerator.num_processes}. A step takes {accumulate} batches of each in place of "
            f"{training.gradient_accumulation_steps}, so that it has the samples that it had before"
        )
    try:
        if options.memory.float8:
            refuse_without_float8(accelerator.device, accelerator.mixed_precision)
        shell = empty_pipeline(model, float_dtype(accelerator.mixed_precision), accelerator.device)
        task, trained = options.loss_task, options.trained_components
        if isinstance(source, CachedDataset):
            task = source.manifest.recipe.task
            use.refuse_loras_on(source.manifest.recipe.components, model.family)
        stages = plan_stages(shell, find_loss(task), trained)
        whole = [name.split(".")[0] for name in training.trainable_models or ()]
        objective = objective_of(options.objective)
        check_tables_for(source.tables, shell, trained, whole, find_loss(task), objective)
        _refuse_idle_edits(use, model, source, stages, options)
        if isinstance(source, CachedDataset):
            check = CacheCheck(source, options.weights, options.data)
            check.refuse_other_units(stages, trained)
            check.refuse_other_precision(accelerator.mixed_precision)
        if training.max_steps is not None:
            warmup_of(options.optim, training.max_steps)
        encoding = _plan_own_cache(options, use, model, source, accelerator, shell, stages)
        if training.group_by_prompt_length:
            refuse_groups(model.family, cached=encoding is not None or isinstance(source, CachedDataset))
    except BaseException:
        accelerator.end_training()
        raise
    return TrainingPlan(
        options=options,
        model=model,
        use=use,
        source=source,
        skipped=skipped,
        accelerator=accelerator,
        task=task,
        stages=stages,
        encoding=encoding,
        optimizer=optimizer,
        lr_schedule=plan_lr_schedule(options.optim),
        callbacks=callbacks,
        state=state,
        mirror=mirror,
        identity=identity,
    )


def build_accelerator(options: TrainingOptions, processes: ProcessOptions, usual: str | None = None) -> Accelerator:
    """Set up accelerate: device, precision (`usual` if none was given) and gradient accumulation."""
    from accelerate import DistributedDataParallelKwargs

    return make_accelerator(
        options.device,
        options.mixed_precision,
        processes,
        usual,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        handlers=[DistributedDataParallelKwargs(find_unused_parameters=options.find_unused_parameters is not False)],
    )


def accumulation_for(state: SavedState, options: TrainingOptions, processes: int) -> int | None:
    """Return how many batches a step takes, so that it has the samples that it had with another number of processes.

    None where it has them as the options are, where these are not those of the saved run, and where no whole number
    will do: then the run goes on as they say, or is refused.
    """
    samples, asked = state.about["settings"]["samples_per_step"], state.about.get("asked")
    if asked != {name: getattr(options, name) for name in ASKED}:
        return None
    batches, rest = divmod(samples, options.batch_size * processes)
    return batches if batches and not rest and batches != options.gradient_accumulation_steps else None


def _refuse_idle_edits(
    use: ModelUse, model: ResolvedModel, source: Source, stages: Stages, options: TrainOptions
) -> None:
    """Raise an error for an edit of weights that the run does not load, or that it multiplies in float8."""
    if isinstance(source, CachedDataset):
        use.refuse_unloaded(stages.second_components, "training from a cache")
    else:
        parts = {component.name for component in model.family.components} - set(stages.idle)
        use.refuse_unloaded(parts, "this run")
    packed = use.edits.packed if options.memory.float8 else ()
    for name in {denoiser.name for denoiser in model.parts.denoisers} & set(packed):
        raise UsageError(
            f"--float8 and {use.edits.holding(name)[1]} {name} are both given, and cannot be combined",
            hint="give one of them",
        )


def refuse_epochs(tables: Sequence[DatasetTable], options: TrainingOptions) -> None:
    """Raise a UsageError for datasets with weights in a run whose length follows from its epochs."""
    if options.max_steps is None and any(table.weight is not None for table in tables):
        raise UsageError(
            "the datasets have weights, by which an epoch has no length of its own, and --max-steps is not given",
            hint="give --max-steps, or repeats in place of weights",
        )


def _goes_on(output: OutputOptions, state: SavedState | None) -> bool:
    return state is not None and state.output_path == output.output_path.absolute()


def _open_source(
    options: TrainOptions, use: ModelUse, skipped: SkippedRows, progress: Progress, offline: bool
) -> tuple[Source, ResolvedModel]:
    if options.cache_folder is not None:
        return open_cache(options, use)
    return open_dataset(options, use, skipped, progress, offline=offline)


def _plan_own_cache(
    options: TrainOptions,
    use: ModelUse,
    model: ResolvedModel,
    source: Source,
    accelerator: Accelerator,
    shell: BasePipeline,
    stages: Stages,
) -> EncodePlan | None:
    """Return the plan of the run's own cache, if samples are used more than once and do not vary; else None."""
    if isinstance(source, CachedDataset) or not options.caching.cache or source.varies():
        return None
    if not samples_repeat(options.training, source, accelerator.num_processes) or not stages.groups:
        return None
    if use.changed_by_loras(model.family) & set(stages.first_components):
        return None
    return EncodePlan(
        model,
        source,
        accelerator,
        shell,
        stages,
        options.loss_task,
        options.trained_components,
        use.edits,
        options.weights,
        options.data,
    )
