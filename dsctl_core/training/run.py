"""One run of `dsctl train`, from the options to the result.

What is cheap is checked first: options, dataset, model files and output folder, before any weights are loaded.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from dsctl_core.data import UnifiedDataset, check_dataset
from dsctl_core.errors import UsageError, unknown_name
from dsctl_core.families import pipeline_class
from dsctl_core.families.resolve import ResolvedModel, resolve_model
from dsctl_core.lora.files import lora_weights
from dsctl_core.options import TrainOptions
from dsctl_core.progress import NoProgress, Progress
from dsctl_core.training.about import header_metadata
from dsctl_core.training.folder import claim, refuse_used, unclaim
from dsctl_core.training.logger import ModelLogger
from dsctl_core.training.loop import launch_training_task
from dsctl_core.training.module import float_dtype
from dsctl_core.training.tasks import TaskModule
from dsctl_core.version import __version__

LORA_RATE, FULL_RATE = 1e-4, 1e-5  # the learning rates that the spec recommends


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


def run_training(options: TrainOptions, progress: Progress) -> TrainResult:
    """Train as `options` say and return what came of it.

    Raises DsctlError for anything that cannot be used, and then leaves no output folder behind that was not there.
    """
    began = time.perf_counter()
    refuse_used(options.output_path)
    resolved = resolve_model(
        options.model, options.model_paths, options.model_id_with_origin_paths, options.tokenizer_path
    )
    for name in options.extra_inputs:
        if name not in resolved.family.extra_inputs:
            known = resolved.family.extra_inputs
            takes = f"takes {', '.join(known)}" if known else "takes no extra inputs"
            raise unknown_name("extra input", name, known, listing=f"{resolved.family.title} {takes}")
    dataset = build_dataset(options, resolved)
    check_dataset(dataset, progress)
    for lora in options.lora:
        lora_weights(lora.path)
    accelerator = build_accelerator(options)
    if not accelerator.is_main_process:
        progress = NoProgress()
    made = claim(options.output_path) if accelerator.is_main_process else []
    try:
        module = build_module(options, resolved, accelerator, progress)
        rate = learning_rate(options, resolved)
        logger = ModelLogger(
            options.output_path,
            options.remove_prefix_in_ckpt,
            metadata=header_metadata(options, resolved, dataset),
            run=describe_run(options, resolved, rate, accelerator),
            lora_format=options.lora_format,
            lora_dtype=options.lora_dtype,
        )
        summary = launch_training_task(
            accelerator,
            dataset,
            module,
            logger,
            learning_rate=rate,
            weight_decay=options.weight_decay,
            num_epochs=options.num_epochs,
            max_steps=options.max_steps,
            batch_size=options.batch_size,
            num_workers=options.dataset_num_workers,
            save_steps=options.save_steps,
            max_grad_norm=options.max_grad_norm,
            seed=options.seed,
            progress=progress,
        )
    except BaseException:
        unclaim(made)
        raise
    finally:
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
    )


def build_dataset(options: TrainOptions, resolved: ResolvedModel) -> UnifiedDataset:
    """Build the dataset; without any size given, a model with a native size limits the pictures to that many pixels."""
    native = resolved.defaults.get("max_pixels")
    max_pixels = options.max_pixels if options.given("max_pixels") or native is None else native
    base, factor = options.dataset_base_path, resolved.family.division_factor
    return UnifiedDataset(
        base_path=base,
        metadata_path=options.dataset_metadata_path,
        repeat=options.dataset_repeat,
        data_file_keys=options.data_file_keys,
        main_data_operator=UnifiedDataset.default_image_operator(
            base_path=base,
            max_pixels=None if options.height is not None else max_pixels,
            height=options.height,
            width=options.width,
            height_division_factor=factor,
            width_division_factor=factor,
        ),
    )


def build_accelerator(options: TrainOptions) -> Accelerator:
    """Set up accelerate: device, precision and accumulation."""
    from accelerate import DistributedDataParallelKwargs

    if options.device is not None and options.device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {options.device} is asked for, but torch sees no such GPU", hint="see dsctl doctor")
    precision = options.mixed_precision
    if precision == "fp16" and (options.device == "cpu" or not torch.cuda.is_available()):
        raise UsageError("--mixed-precision fp16 needs a GPU", hint="use bf16 or no on a CPU")
    _forget_earlier_run()
    return Accelerator(
        cpu=options.device == "cpu",
        mixed_precision=precision or default_precision(options.device),
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=options.find_unused_parameters)],
    )


def _forget_earlier_run() -> None:
    """Let a second run in this process choose its own device and precision; accelerate keeps the first one's."""
    state = AcceleratorState._shared_state
    if state and state.get("num_processes", 1) == 1:
        AcceleratorState._reset_state(reset_partial_state=True)


def default_precision(device: str | None) -> str:
    """Return bf16 on a GPU that computes in it, else no."""
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "no"


def build_module(
    options: TrainOptions, resolved: ResolvedModel, accelerator: Accelerator, progress: Progress
) -> TaskModule:
    """Load the pipeline (frozen weights in the run's precision, trained ones in float32) and make it trainable."""
    progress.note(f"Loading {resolved.label}")
    dtype = float_dtype(accelerator.mixed_precision)
    whole = {name.split(".")[0]: torch.float32 for name in options.trainable_models or ()}
    for name in (*whole, *options.fp8_models, *filter(None, [options.lora_base_model, options.preset_lora_model])):
        resolved.family.component(name)
    pipe = pipeline_class(resolved.family).from_pretrained(
        torch_dtype=dtype,
        device=accelerator.device,
        model_configs=list(resolved.model_configs),
        tokenizer_config=resolved.tokenizer_config,
        component_dtypes=whole,
    )
    return TaskModule(
        pipe,
        options.task,
        extra_inputs=options.extra_inputs,
        use_gradient_checkpointing=options.use_gradient_checkpointing,
        use_gradient_checkpointing_offload=options.use_gradient_checkpointing_offload,
        trainable_models=options.trainable_models,
        lora_base_model=(options.lora_base_model or "dit") if options.wants_lora else None,
        lora_target_modules=options.lora_target_modules,
        lora_rank=options.lora_rank or 32,
        lora_alpha=options.lora_alpha,
        lora_checkpoint=options.lora_checkpoint,
        preset_lora_path=options.preset_lora_path,
        preset_lora_model=options.preset_lora_model,
        loras=[(lora.path, lora.scale) for lora in options.lora],
        fp8_models=options.fp8_models,
        seed=options.seed,
    )


def learning_rate(options: TrainOptions, resolved: ResolvedModel) -> float:
    """Return the rate given, else for a LoRA the preset's own or 1e-4, and 1e-5 when whole components are trained."""
    if options.learning_rate is not None:
        return options.learning_rate
    if options.trainable_models is not None:
        return FULL_RATE
    return resolved.defaults.get("learning_rate", LORA_RATE)


def describe_run(
    options: TrainOptions, resolved: ResolvedModel, rate: float, accelerator: Accelerator
) -> dict[str, Any]:
    """Return what `run.json` says: the options as resolved, the model, the versions and the hardware."""
    import importlib.metadata

    packages = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")
    device = accelerator.device
    return {
        "command": "train",
        "options": {
            **options.model_dump(mode="json"),
            "learning_rate": rate,
            "mixed_precision": accelerator.mixed_precision,
        },
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
