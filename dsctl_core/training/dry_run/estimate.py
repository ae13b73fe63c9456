"""What a run would take: parameters, memory by part, disk and steps, found out without loading any weights.

The networks are built from their configs with tensors that have no numbers, and one sample of the largest size goes
through both stages and two whole steps of training with the real code; what is alive at each moment is counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image

from dsctl_core.cache.reader import CACHED, CachedDataset
from dsctl_core.checkpoint.identify import weight_files
from dsctl_core.checkpoint.load import ComponentPaths, empty_component, find_component_paths
from dsctl_core.checkpoint.readers import Readers
from dsctl_core.commands.train import build_accelerator, learning_rate, open_samples, samples_repeat, task_module
from dsctl_core.data.sampler import BatchPlan
from dsctl_core.errors import DsctlError
from dsctl_core.families import pipeline_class
from dsctl_core.files.safetensors import safetensors_header
from dsctl_core.memory.recompute import checkpoint_some
from dsctl_core.stages.sample import pick, rounded
from dsctl_core.stages.split import plan_stages, run
from dsctl_core.training.dry_run.fake_tensors import KnownMasks, LiveBytes, Simulation, tensor_bytes
from dsctl_core.training.dry_run.process_memory import warm_up
from dsctl_core.training.loop.batches import MicroBatches
from dsctl_core.training.model.module import float_dtype
from dsctl_core.training.model.task_module import TaskModule, find_loss
from dsctl_core.training.optim.optimizer import plan_optimizer
from dsctl_core.training.output.folder import refuse_used
from dsctl_core.training.output.skipped import SkippedRows
from dsctl_core.training.plan.caching import empty_pipeline

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dsctl_core.commands.train import Dataset
    from dsctl_core.families.resolve import ResolvedModel
    from dsctl_core.options import TrainOptions
    from dsctl_core.pipeline import BasePipeline
    from dsctl_core.progress import Progress

STORED_AS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # in a safetensors file

# Inputs of a run that change no sizes; their files are not opened.
NOT_LOOKED_AT = {"lora": (), "preset_lora_path": None, "preset_lora_model": None, "lora_checkpoint": None}


@dataclass(frozen=True)
class Memory:
    """Bytes by part, in the order in which a run meets them; `peak` is the most that it has at any moment.

    `process` is what the program takes before anything is loaded, which counts on a CPU only. `activations` are what
    forward leaves for backward, or all that backward has beside weights, gradients and state, whichever is more. `ema`
    is the average of the trained weights.
    """

    process: int
    stage_one: int
    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    saving: int
    peak: int


@dataclass(frozen=True)
class DryRun:
    """What a run would take. Sizes in bytes; `disk` is of all that it would leave."""

    parameters: dict[str, int]
    memory: Memory
    disk: dict[str, int]
    steps: int
    sample: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        """Return all of it as JSON takes it."""
        return asdict(self)


def dry_run(options: TrainOptions, progress: Progress) -> DryRun:
    """Find out what `options` would take. Nothing is written, downloaded or trained.

    Raises DsctlError for whatever a run would refuse before it loads weights.
    """
    refuse_used(options.output_path)
    dataset, resolved = open_samples(options, SkippedRows(options.output_path), progress)
    for name in (*options.trained_components, *options.fp8_models):
        resolved.family.component(name)
    accelerator = build_accelerator(options)
    try:
        return _Rehearsal(options, resolved, dataset, accelerator).result()
    finally:
        accelerator.end_training()


class _Rehearsal:
    """One dry run."""

    def __init__(
        self, options: TrainOptions, resolved: ResolvedModel, dataset: Dataset, accelerator: Accelerator
    ) -> None:
        self.options, self.resolved, self.dataset, self.accelerator = options, resolved, dataset, accelerator
        self.dtype = float_dtype(accelerator.mixed_precision)
        cached = isinstance(dataset, CachedDataset)
        self.task = dataset.manifest.recipe.task if isinstance(dataset, CachedDataset) else options.loss_task
        shell = empty_pipeline(resolved, self.dtype, "cpu")
        self.stages = plan_stages(shell, find_loss(self.task), options.trained_components)
        repeats = not cached and samples_repeat(options, dataset, accelerator.num_processes)  # type: ignore[arg-type]
        self.own_cache = bool(
            repeats and options.cache and not dataset.varies() and self.stages.groups  # type: ignore[union-attr]
        )
        self.two_stages = cached or self.own_cache
        self.places = _places(resolved, self.stages.second_components if cached else None)
        self.simulation = Simulation()

    def result(self) -> DryRun:
        """Run it."""
        pipe = self._pipeline()
        on_cpu = self.accelerator.device.type == "cpu"
        process = warm_up(self.dtype) if on_cpu else 0
        sample, index = self._largest()
        encoding, entry = (0, sample[CACHED]) if CACHED in sample else self._encode(pipe, sample)
        groups = max((_weights(pipe, group.components) for group in self.stages.groups), default=0)
        stage_one = groups + encoding if self.own_cache else 0
        if self.two_stages:
            for name in set(pipe.components) - set(self.stages.second_components):
                setattr(pipe, name, None)
        module = task_module(self.options.model_copy(update=NOT_LOOKED_AT), pipe, self.task)
        self.simulation.take(module)
        if self.options.gradient_checkpointing_blocks is not None:
            for network in pipe.iteration_modules().values():
                checkpoint_some(network, self.options.gradient_checkpointing_blocks)
        trained = tensor_bytes(module.trainable_modules())
        weights = tensor_bytes([*module.parameters(), *module.buffers()])
        step_peak, activations, state = self._train(module, entry)
        # What is written is copied to the host and, to prove it, read back.
        saving = 2 * trained if on_cpu else 0
        ema = trained if self.options.ema_decay is not None else 0
        inside = ema + max(step_peak, saving + state) + (0 if self.two_stages else encoding)
        if on_cpu:
            # While a file is converted to another dtype, its pages count as well as the tensors that are made of it;
            # otherwise these pages are the tensors.
            inside = max(inside, self._largest_converted_file())
        peak = process + max(stage_one, weights + inside)
        memory = Memory(process, stage_one, weights, trained, state, ema, activations, saving, peak)
        steps, saves = self._steps()
        disk = {
            "checkpoints": saves * self._saved_bytes(module) * (2 if ema else 1),
            "state": min(saves, self.options.state_total_limit) * (trained + state + ema),
            "cache": self._entries() * _entry_bytes(entry) if self.own_cache else 0,
        }
        disk["total"] = sum(disk.values())
        size = {"row": index, "shapes": {n: list(v.shape) for n, v in entry.items() if isinstance(v, torch.Tensor)}}
        return DryRun(self._count(module, pipe), memory, disk, steps, size)

    def _pipeline(self) -> BasePipeline:
        """Return the pipeline with every component that the run loads, without numbers."""
        family, models = self.resolved.family, {}
        for component in family.components:
            folder = self.places.components.get(component.name)
            if folder is None or component.name in self.stages.idle:
                continue
            with self.simulation.building():
                model = empty_component(component, folder)
            dtype = self._dtype_of(component.name)
            models[component.name] = self.simulation.take(model.eval().requires_grad_(False), dtype)
        readers = Readers(family, self.places.readers)
        for name in self.places.readers:
            readers.get(name)  # now, where nothing is measured
        about: dict[str, Any] = {"torch_dtype": self.dtype, "device": "cpu", "parts": self.resolved.parts}
        pipe = pipeline_class(family)(models, readers, family.schedule, **about).eval()
        pipe.scheduler.set_timesteps(training=True)
        return pipe

    def _largest(self) -> tuple[dict[str, Any], int]:
        """Return the sample of the most pixels, and its position."""
        if isinstance(self.dataset, CachedDataset):
            sizes = [sum(_numbers(value) for value in self.dataset.sample(e).values()) for e in self.dataset.entries]
        else:
            sizes = [_product(bucket) for bucket in self.dataset.buckets()]
        index = max(range(len(sizes)), key=sizes.__getitem__)
        return dict(self.dataset[index]), index

    def _encode(self, pipe: BasePipeline, row: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the most bytes that encoding one row takes beside the weights, and what it gives."""
        live = LiveBytes()
        with KnownMasks(), live, torch.no_grad():
            sides = pipe.inputs_from_rows([row], self.options.extra_inputs)
            sides = run(self.stages.split.once, pipe, sides)
            entry = rounded(pick(sides, self.stages.needs), self.dtype)
        return live.peak, entry

    def _train(self, module: TaskModule, entry: dict[str, Any]) -> tuple[int, int, int]:
        """Return, beside the weights, the most bytes of a step, its activations and the optimizer's state."""
        plan = plan_optimizer(self.options, learning_rate(self.options, self.resolved))
        parameters, live = module.trainable_modules(), LiveBytes()
        optimizer = plan(parameters)
        batch = [{CACHED: entry, "seed": number} for number in range(self.options.batch_size)]
        precision = torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32)
        state = activations = 0
        with KnownMasks(), live:
            for _ in range(2):  # the optimizer has its state from the second on
                state = live.now
                live.start_peak()
                for _ in range(min(self.options.gradient_accumulation_steps, 2)):
                    before = live.now
                    with precision:
                        loss = module(batch)
                    kept = live.now - before
                    loss.backward()
                    del loss
                gradients = tensor_bytes([p.grad for p in parameters if p.grad is not None])
                activations = max(kept, live.peak - state - gradients)
                torch.nn.utils.clip_grad_norm_(parameters, self.options.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        return live.peak, activations, state

    def _largest_converted_file(self) -> int:
        names = self.stages.second_components if self.two_stages else set(self.places.components) - self.stages.idle
        files = [(name, file) for name in names for file in weight_files(self.places.components[name])]
        stored = {file: {entry["dtype"] for entry in _entries_of(file)} for _, file in files}
        sizes = [file.stat().st_size for name, file in files if stored[file] != {STORED_AS[self._dtype_of(name)]}]
        return max(sizes, default=0)

    def _dtype_of(self, component: str) -> torch.dtype:
        """Return what a component is loaded in: in float32 where it is trained as a whole."""
        whole = {name.split(".")[0] for name in self.options.trainable_models or ()}
        return torch.float32 if component in whole else self.dtype

    def _steps(self) -> tuple[int, int]:
        """Return how many steps the run has and how often it saves."""
        options, dataset = self.options, self.dataset
        buckets = None
        if options.batch_size > 1 and not isinstance(dataset, CachedDataset):
            buckets = dataset.buckets()
        plan = BatchPlan(len(dataset), options.batch_size, options.seed, buckets)
        accelerator = self.accelerator
        rounds = MicroBatches(plan, 0, accelerator.num_processes, options.gradient_accumulation_steps)
        epoch = math.ceil(len(rounds) / options.gradient_accumulation_steps)
        steps = options.max_steps or options.num_epochs * epoch
        if options.save_steps is not None:
            return steps, math.ceil(steps / options.save_steps)
        return steps, 1 if options.max_steps else options.num_epochs

    def _saved_bytes(self, module: TaskModule) -> int:
        size = 4
        if self.options.wants_lora and self.options.trainable_models is None:
            size = getattr(torch, self.options.lora_dtype).itemsize
        return size * module.count_parameters()["trained"]

    def _entries(self) -> int:
        return 0 if isinstance(self.dataset, CachedDataset) else len(self.dataset.numbers)

    def _count(self, module: TaskModule, pipe: BasePipeline) -> dict[str, int]:
        parts = {name: sum(p.numel() for p in model.parameters()) for name, model in pipe.components.items()}
        return {**module.count_parameters(), **parts}


def _places(resolved: ResolvedModel, components: Sequence[str] | None) -> ComponentPaths:
    """Find the components on the disk; a dry run downloads nothing."""
    configs = [replace(config, skip_download=True) for config in resolved.configs_of(components)]
    readers = {name: replace(config, skip_download=True) for name, config in resolved.reader_configs.items()}
    places = find_component_paths(resolved.family, configs, readers)
    for name, place in places.components.items():
        if place.is_file():
            raise DsctlError(
                f"the {name} is the single file {place}, which no config.json stands beside",
                hint="a dry run needs the sizes: give a model folder in diffusers layout",
            )
    return places


def _weights(pipe: BasePipeline, names: Sequence[str]) -> int:
    return sum(tensor_bytes(getattr(pipe, name).parameters()) for name in names if getattr(pipe, name) is not None)


def _entries_of(file: Path) -> list[dict[str, Any]]:
    """Return what the header of a safetensors file says of each of its tensors."""
    header, _ = safetensors_header(file)
    return [entry for name, entry in header.items() if name != "__metadata__"]


def _entry_bytes(entry: dict[str, Any]) -> int:
    """Return the bytes that a cache keeps of an entry: its tensors, and the pixels of pictures that are kept whole."""
    pictures = [
        each for value in entry.values() if isinstance(value, list) for each in value if isinstance(each, Image)
    ]
    pixels = sum(picture.width * picture.height * len(picture.getbands()) for picture in pictures)
    return pixels + tensor_bytes([value for value in entry.values() if isinstance(value, torch.Tensor)])


def _numbers(value: Any) -> int:
    return value.numel() if isinstance(value, torch.Tensor) else 0


def _product(sizes: Any) -> int:
    """Return the number of pixels in a nest of (width, height): the products of what is innermost, added up."""
    if isinstance(sizes, int):
        return sizes
    if not isinstance(sizes, tuple):
        return 0
    if all(isinstance(each, int) for each in sizes):
        return math.prod(sizes)
    return sum(_product(each) for each in sizes)
