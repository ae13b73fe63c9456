"""One run of `dsctl train`, from the options to the result.

What is cheap is checked first: options, dataset, model files and output folder, before any weights are loaded.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.data import DataError, DatasetError, UnifiedDataset, check_dataset, usable_part
from dsctl_core.data.build import build_dataset
from dsctl_core.errors import UsageError
from dsctl_core.families.resolve import ResolvedModel
from dsctl_core.files.atomic import unclaim
from dsctl_core.lora.files import lora_weights
from dsctl_core.losses import find_loss
from dsctl_core.losses.columns import refuse_unreadable, unreadable_rows, with_columns_alike
from dsctl_core.memory.attention import check_backend
from dsctl_core.memory.options import MemorySettings
from dsctl_core.options import TrainOptions
from dsctl_core.pipeline import BasePipeline
from dsctl_core.progress import NoProgress, Progress
from dsctl_core.stages.split import idle_denoisers, plan_stages
from dsctl_core.training.callbacks.build import plan_callbacks
from dsctl_core.training.callbacks.ema import AverageWeights
from dsctl_core.training.callbacks.trackers import require_trackers
from dsctl_core.training.distributed.accelerator import make_accelerator
from dsctl_core.training.loop.loop import launch_training_task
from dsctl_core.training.model.module import float_dtype
from dsctl_core.training.model.task_module import TaskModule, objective_of, refuse_unused
from dsctl_core.training.optim.lr_schedule import plan_lr_schedule
from dsctl_core.training.optim.optimizer import OptimizerPlan, learning_rate, plan_optimizer
from dsctl_core.training.output.folder import claim, refuse_used
from dsctl_core.training.output.logger import ModelLogger
from dsctl_core.training.output.metadata import base_weights, header_metadata
from dsctl_core.training.output.skipped import SkippedRows
from dsctl_core.training.plan.caching import (
    empty_pipeline,
    open_model,
    plan_encoding,
    readers_of,
    refuse_extra_inputs,
    refuse_loras_on,
    sharing,
    weight_edits_of,
    with_loras,
)
from dsctl_core.training.plan.from_cache import refuse_misfit, refuse_other_units, resolve_cached
from dsctl_core.training.state.compare import identity_of, refuse_changes
from dsctl_core.training.state.folder import find_state
from dsctl_core.version import __version__

Dataset = UnifiedDataset | CachedDataset
CACHE_FOLDER = "cache"  # in the output folder of a run that made its own
MOST_PROBLEMS = 1000  # of a dataset, that are listed


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. `checkpoint` is the file to take away (the first, when several components were trained)."""

    checkpoint: Path
    checkpoints: tuple[Path, ...]
    steps: int
    final_loss: float
    seconds: float
    output_path: Path
    is_main_process: bool  # of several processes one speaks for all
    skipped: int = 0  # rows that could not be used, with --on-bad-sample skip


def run_training(options: TrainOptions, progress: Progress) -> TrainResult:
    """Train as `options` say and return what came of it.

    Raises DsctlError for anything that cannot be used, and then leaves no output folder behind that was not there,
    but for a cache that was made already.
    """
    began = time.perf_counter()
    require_trackers([tracker.name for tracker in options.track])
    state = find_state(options.output_path, options.resume, progress.note) if options.resume else None
    goes_on = state is not None and state.output_path == options.output_path.absolute()
    if not goes_on:
        refuse_used(options.output_path)
    skipped = SkippedRows(options.output_path)
    for lora in options.lora:
        lora_weights(lora.path)
    source, resolved = open_samples(options, skipped, progress)
    named = (*options.trained_components, *options.fp8_models)
    for name in (*named, options.preset_lora_model or resolved.family.denoisers[0].name):
        resolved.check_component(name)
    optimizer = plan_optimizer(options, learning_rate(options, resolved))
    identity = identity_of(options, resolved, source, optimizer.arguments["lr"])
    if state is not None:
        refuse_changes(state.about["settings"], identity, options.allow_changed, state.folder)
    if options.attention_backend is not None:
        check_backend(options.attention_backend)
    callback_plan = plan_callbacks(options, resolved, source)
    # Every byte of a cache is looked at while the model loads.
    checks = ThreadPoolExecutor(1)
    checked = checks.submit(source.check_shards) if isinstance(source, CachedDataset) else None
    accelerator = build_accelerator(options)
    if not accelerator.is_main_process:
        progress = NoProgress()
    warn_of_distilled(resolved, progress)
    made = claim(options.output_path) if accelerator.is_main_process and not goes_on else []
    try:
        dataset, task, only = first_stage(options, source, resolved, accelerator, progress)
        only = only or without_idle(options, resolved, task)
        for each in dataset.manifest.skipped if isinstance(dataset, CachedDataset) else ():
            skipped.add(DataError(each["problem"], hint=each["hint"], kind=each["kind"]))
        about = describe_run(options, resolved, optimizer, accelerator)
        on_bad_sample = skipped.add if options.on_bad_sample == "skip" else None
        dataset, held_out = callback_plan.hold_out(dataset)
        averaging = [] if options.ema_decay is None else [AverageWeights(options.ema_decay)]
        watching = callback_plan.hooks(accelerator, dataset, held_out, only, about["options"], on_bad_sample, progress)
        module = build_module(options, resolved, accelerator, progress, task, only)
        logger = ModelLogger(
            options.output_path,
            options.remove_prefix_in_ckpt,
            metadata=header_metadata(options, resolved, source),
            run={**about, "identity": identity},
            lora_format=options.lora_format,
            lora_dtype=options.lora_dtype,
            base_weights=base_weights(options, resolved),
        )
        skipped.start(is_main_process=accelerator.is_main_process)
        if checked is not None:
            checked.result()
        summary = launch_training_task(
            accelerator,
            dataset,
            module,
            logger,
            num_epochs=options.num_epochs,
            max_steps=options.max_steps,
            batch_size=options.batch_size,
            num_workers=options.dataset_num_workers,
            save_steps=options.save_steps,
            max_grad_norm=options.max_grad_norm,
            seed=options.seed,
            buckets=buckets_of(dataset, module) if options.batch_size > 1 else None,
            on_bad_sample=on_bad_sample,
            optimizer=optimizer,
            lr_scheduler=plan_lr_schedule(options),
            hooks=[*averaging, *watching],
            resume=state,
            allow_changed=options.allow_changed,
            state_total_limit=options.state_total_limit,
            progress=progress,
        )
    except BaseException:
        unclaim(made)
        raise
    finally:
        checks.shutdown(wait=False)
        accelerator.end_training()
    seconds = time.perf_counter() - began
    return TrainResult(
        checkpoint=summary.files[0],
        checkpoints=tuple(summary.files),
        steps=summary.steps,
        final_loss=summary.final_loss,
        seconds=seconds,
        output_path=options.output_path,
        is_main_process=accelerator.is_main_process,
        skipped=len(skipped),
    )


def warn_of_distilled(resolved: ResolvedModel, progress: Progress) -> None:
    """Say so where the weights to be trained are distilled: what is learned fights the few steps they are made for."""
    preset = resolved.preset
    if preset is not None and preset.base_preset is not None:
        progress.note(
            f"Warning: {preset.name} is distilled, and training on it gives poor pictures; "
            f"train on {preset.base_preset} instead, and use the LoRA on either"
        )


def open_samples(options: TrainOptions, skipped: SkippedRows, progress: Progress) -> tuple[Dataset, ResolvedModel]:
    """Return the dataset, checked, or the cache, and the model that goes with it."""
    if options.cache_folder is not None:
        cached = CachedDataset(options.cache_folder, options.dataset_repeat)
        resolved = resolve_cached(options, cached.manifest.recipe)
        refuse_misfit(cached, options, resolved)
        refuse_unused(objective_of(options), find_loss(cached.manifest.recipe.task))
        return cached, resolved
    resolved = open_model(options)
    refuse_extra_inputs(options.extra_inputs, resolved, options.loss_task)
    refuse_unused(objective_of(options), find_loss(options.loss_task))
    return checked_dataset(options, resolved, skipped, progress), resolved


def checked_dataset(
    options: TrainOptions, resolved: ResolvedModel, skipped: SkippedRows, progress: Progress
) -> UnifiedDataset:
    """Build the dataset and check it: a row that cannot be used is refused, or left out and told to `skipped`."""
    dataset = build_dataset(options, resolved.family, resolved.defaults, resolved.parts.division_factor)
    progress.note(f"Dataset: {dataset.metadata.layout}")
    if options.on_bad_sample == "stop":
        try:
            check_dataset(dataset, progress, limit=MOST_PROBLEMS)
        except DatasetError as error:
            for problem in error.problems if len(error.problems) > 1 else ():
                progress.note(problem.problem)
            raise
        refuse_unreadable(dataset, find_loss(options.loss_task))
        return dataset
    usable, problems = usable_part(dataset, progress)
    unread = unreadable_rows(usable, find_loss(options.loss_task))
    for problem in problems:
        skipped.add(problem)
    for unreadable in unread.values():
        skipped.add(unreadable)
    return usable.without(unread) if unread else usable


def first_stage(
    options: TrainOptions, dataset: Dataset, resolved: ResolvedModel, accelerator: Accelerator, progress: Progress
) -> tuple[Dataset, str, tuple[str, ...] | None]:
    """Return the samples to train from, the task, and the components that are needed for it (None: all).

    Samples that are seen more than once are encoded once, into the output folder, and trained from there, unless
    their prompts are drawn anew each time.
    """
    dtype, trained = float_dtype(accelerator.mixed_precision), options.trained_components
    if isinstance(dataset, CachedDataset):
        refuse_loras_on(options, resolved.family, dataset.manifest.recipe.components)
        task = dataset.manifest.recipe.task
        stages = plan_stages(empty_pipeline(resolved, dtype, accelerator.device), find_loss(task), trained)
        once = [(type(unit).__name__, unit.version) for unit in stages.split.once]
        refuse_other_units(dataset, options, once, [type(unit).__name__ for unit in stages.split.every_step], trained)
        return dataset, task, stages.second_components
    task = options.loss_task
    if not options.cache or dataset.varies() or not samples_repeat(options, dataset, accelerator.num_processes):
        return dataset, task, None
    job = plan_encoding(resolved, options, task, trained, dtype, accelerator.device)
    if not job.stages.groups or with_loras(options, resolved.family) & set(job.stages.first_components):
        return dataset, task, None
    cache = options.output_path / CACHE_FOLDER
    how = sharing(accelerator, readers=readers_of(options), skip_bad=options.on_bad_sample == "skip")
    job.fill(cache, dataset, how, progress)
    return CachedDataset(cache, options.dataset_repeat), task, job.stages.second_components


def without_idle(options: TrainOptions, resolved: ResolvedModel, task: str) -> tuple[str, ...] | None:
    """Return the components to load where training encodes by itself: without idle denoisers (None: all)."""
    shell = empty_pipeline(resolved, torch.float32, "cpu")
    idle = idle_denoisers(shell, find_loss(task), options.trained_components)
    return tuple(name for name in shell.component_names if name not in idle) if idle else None


def samples_repeat(options: TrainOptions, dataset: UnifiedDataset, processes: int) -> bool:
    """Return whether the run sees its samples more than once."""
    seen = options.num_epochs * len(dataset)
    if options.max_steps is not None:
        seen = options.max_steps * options.batch_size * options.gradient_accumulation_steps * processes
    return seen > len(dataset.numbers)


def buckets_of(dataset: Dataset, module: TaskModule) -> list[Hashable]:
    """Return what the rows of a batch must have in common, of a cache but for what is padded."""
    if isinstance(dataset, CachedDataset):
        return dataset.buckets(module.padded)
    return with_columns_alike(dataset.buckets(), dataset, module.loss)


def build_accelerator(options: TrainOptions) -> Accelerator:
    """Set up accelerate: device, precision and accumulation."""
    from accelerate import DistributedDataParallelKwargs

    return make_accelerator(
        options.device,
        options.mixed_precision,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=options.find_unused_parameters)],
    )


def build_module(
    options: TrainOptions,
    resolved: ResolvedModel,
    accelerator: Accelerator,
    progress: Progress,
    task: str,
    only: tuple[str, ...] | None,
) -> TaskModule:
    """Load the pipeline (frozen weights in the run's precision, trained ones in float32) and make it trainable.

    Of its components those in `only`, or all. What is to be done to one that is not loaded was done in stage one.
    """
    progress.note(f"Loading {resolved.label}")
    dtype = float_dtype(accelerator.mixed_precision)
    whole = {name.split(".")[0]: torch.float32 for name in options.trainable_models or ()}
    # What is to wait in main memory is not sent to the GPU first, which it might not fit into.
    place = torch.device("cpu") if options.offload_blocks else accelerator.device
    pipe = resolved.load_pipeline(torch_dtype=dtype, device=place, only=only, component_dtypes=whole)
    module = task_module(options, pipe, task)
    apply_memory_settings(options, module, accelerator)
    return module


def task_module(options: TrainOptions, pipe: BasePipeline, task: str) -> TaskModule:
    """Make trainable on `pipe` what the options say."""
    altered = weight_edits_of(options)
    return TaskModule(
        pipe,
        task,
        extra_inputs=options.extra_inputs,
        use_gradient_checkpointing=options.use_gradient_checkpointing,
        use_gradient_checkpointing_offload=options.use_gradient_checkpointing_offload,
        objective=objective_of(options),
        trainable_models=options.trainable_models,
        lora_base_model=(options.lora_base_model or "dit") if options.wants_lora else None,
        lora_target_modules=options.lora_target_modules,
        lora_rank=options.lora_rank or 32,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        use_dora=options.use_dora,
        use_rslora=options.use_rslora,
        lora_checkpoint=options.lora_checkpoint,
        preset_lora_path=altered.lora if altered.lora_on in pipe.components else None,
        preset_lora_model=altered.lora_on,
        loras=[(lora.path, lora.scale) for lora in options.lora],
        fp8_models=[name for name in altered.fp8 if name in pipe.components],
        seed=options.seed,
    )


def apply_memory_settings(options: TrainOptions, module: TaskModule, accelerator: Accelerator) -> None:
    """Do to the networks that run at every step what the options ask for, and bring the pipeline to its device."""
    if options.offload_blocks and accelerator.device.type == "cpu":
        raise UsageError("--offload-blocks has no effect without a GPU", hint="leave it out")
    pipe = module.pipe
    memory_settings = MemorySettings(
        options.gradient_checkpointing_blocks, options.offload_blocks, options.compile, options.attention_backend
    )
    memory_settings.apply(list(pipe.iteration_modules().values()), accelerator.device)
    pipe.to(accelerator.device)
    pipe.device = torch.empty(0, device=accelerator.device).device


def describe_run(
    options: TrainOptions, resolved: ResolvedModel, optimizer: OptimizerPlan, accelerator: Accelerator
) -> dict[str, Any]:
    """Return what `run.json` says: the options as resolved, the model, the versions and the hardware."""
    import importlib.metadata

    packages = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")
    device = accelerator.device
    return {
        "command": "train",
        "options": {
            **options.model_dump(mode="json"),
            "learning_rate": optimizer.arguments["lr"],
            "mixed_precision": accelerator.mixed_precision,
        },
        "optimizer": optimizer.described(),
        "family": resolved.family.name,
        "preset": resolved.preset.name if resolved.preset else None,
        "versions": {
            "dsctl": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "hardware": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "processes": accelerator.num_processes,
            "system": platform.platform(),
        },
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
