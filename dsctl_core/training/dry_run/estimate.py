"""Estimate what a run needs, parameters, memory by part, disk and steps, without loading any weights.

The networks are built from their configs with fake tensors, and one sample of the largest size goes through both
stages and two full training steps with the real code, while the bytes of live tensors are counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from dsctl_core.cache.reader import CACHED, CachedDataset
from dsctl_core.checkpoint.build import empty_component
from dsctl_core.checkpoint.identify import weight_files
from dsctl_core.checkpoint.load import ComponentPaths, find_component_paths, require_configs
from dsctl_core.checkpoint.readers import Readers
from dsctl_core.data.sampler import BatchPlan
from dsctl_core.errors import DsctlError
from dsctl_core.families import pipeline_class
from dsctl_core.files.safetensors import safetensors_header
from dsctl_core.losses import find_loss
from dsctl_core.memory.recompute import checkpoint_some
from dsctl_core.stages.sample import pick, rounded
from dsctl_core.stages.split import run
from dsctl_core.training.dry_run.fake_tensors import KnownAnswers, LiveBytes, Simulation, tensor_bytes
from dsctl_core.training.dry_run.process_memory import warm_up
from dsctl_core.training.loop.batches import MicroBatches
from dsctl_core.training.model.task_module import TaskModule
from dsctl_core.training.plan.module import task_module

if TYPE_CHECKING:
    from dsctl_core.families.resolve import ResolvedModel
    from dsctl_core.pipeline import BasePipeline
    from dsctl_core.training.plan.plan import TrainingPlan

STORED_AS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # dtype names in safetensors headers


@dataclass(frozen=True)
class Memory:
    """Memory in bytes by part, in the order in which a run allocates them; `peak` is the maximum over the run.

    `process` is the memory of the program before anything is loaded, which counts on a CPU only. `activations` is the
    larger of what forward keeps for backward and what backward allocates beside weights, gradients and state. `ema` is
    the average of the trained weights.
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
    """The needs of a run. Sizes in bytes; `disk` is the size of all files that it leaves."""

    parameters: dict[str, int]
    memory: Memory
    disk: dict[str, int]
    steps: int
    sample: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        """Return all values as a JSON object."""
        return asdict(self)


def estimate(plan: TrainingPlan) -> DryRun:
    """Estimate what the run of `plan` needs. Nothing is written, downloaded or trained.

    Raises DsctlError for a template with code that reads the values of tensors.
    """
    try:
        return _Estimate(plan).result()
    except DsctlError as error:
        if isinstance(error.__cause__, DataDependentOutputException | DynamicOutputShapeException):
            hint = (
                "a dry run has tensors without numbers, so .item(), .tolist() and `if tensor` fail: leave --dry-run out"
            )
            raise DsctlError(error.problem, hint=hint) from error
        raise


class _Estimate:
    """The estimate of one run."""

    def __init__(self, plan: TrainingPlan) -> None:
        self.plan, self.options, self.stages = plan, plan.options, plan.stages
        cached = isinstance(plan.source, CachedDataset)
        self.places = _places(plan.model, plan.components if cached else None)
        self.simulation = Simulation()

    def result(self) -> DryRun:
        """Simulate the run and return its needs."""
        pipe = self._pipeline()
        on_cpu = self.plan.accelerator.device.type == "cpu"
        process = warm_up(self.plan.dtype) if on_cpu else 0
        sample, index = self._largest()
        encoding, entry = (0, sample[CACHED]) if CACHED in sample else self._encode(pipe, sample)
        groups = max((_weights(pipe, group.components) for group in self.stages.groups), default=0)
        stage_one = groups + encoding if self.plan.encoding is not None else 0
        if self.plan.cached:
            for name in set(pipe.components) - set(self.stages.second_components):
                setattr(pipe, name, None)
        module = task_module(self.plan, pipe, read_loras=False)
        self.simulation.take(module)
        if self.options.memory.gradient_checkpointing_blocks is not None:
            for network in pipe.iteration_modules().values():
                checkpoint_some(network, self.options.memory.gradient_checkpointing_blocks)
        trained = tensor_bytes(module.trainable_modules())
        weights = tensor_bytes([*module.parameters(), *module.buffers()])
        step_peak, activations, state = self._train(module, entry)
        # Saved weights are copied to the host, and read back to verify the file.
        saving = 2 * trained if on_cpu else 0
        ema = trained if self.options.optim.ema_decay is not None else 0
        inside = ema + max(step_peak, saving + state) + (0 if self.plan.cached else encoding)
        if on_cpu:
            # While a file is converted to another dtype, its mapped pages count beside the converted tensors;
            # without a conversion the tensors are these pages.
            inside = max(inside, self._largest_converted_file())
        peak = process + max(stage_one, weights + inside)
        memory = Memory(process, stage_one, weights, trained, state, ema, activations, saving, peak)
        steps, saves = self._steps()
        disk = {
            "checkpoints": saves * self._saved_bytes(module) * (2 if ema else 1),
            "state": min(saves, self.options.output.state_total_limit) * (trained + state + ema),
            "cache": self._entries() * _entry_bytes(entry) if self.plan.encoding is not None else 0,
        }
        disk["total"] = sum(disk.values())
        size = {"row": index, "shapes": {n: list(v.shape) for n, v in entry.items() if isinstance(v, torch.Tensor)}}
        return DryRun(self._count(module, pipe), memory, disk, steps, size)

    def _pipeline(self) -> BasePipeline:
        """Return the pipeline with every component that the run loads, on fake tensors."""
        family, models = self.plan.model.family, {}
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
            readers.get(name)  # build it now, outside the measurement
        plan = self.plan
        about: dict[str, Any] = {"torch_dtype": plan.dtype, "device": "cpu", "parts": plan.model.parts}
        pipe = pipeline_class(family)(models, readers, plan.model.schedule, **about).eval()
        pipe.scheduler.set_timesteps(training=True)
        if self.plan.model.side_network is not None:
            self.plan.model.with_side_network(pipe)
            self.simulation.take(pipe.component(self.plan.model.side_network.name))
        return pipe

    def _largest(self) -> tuple[dict[str, Any], int]:
        """Return the sample with the most pixels, and its position."""
        if isinstance(self.plan.source, CachedDataset):
            sizes = [
                sum(_numbers(value) for value in self.plan.source.sample(e).values()) for e in self.plan.source.entries
            ]
        else:
            sizes = [_product(bucket) for bucket in self.plan.source.buckets()]
        index = max(range(len(sizes)), key=sizes.__getitem__)
        return dict(self.plan.source[index]), index

    def _encode(self, pipe: BasePipeline, row: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the peak bytes of encoding one row, without the weights, and the encoded row."""
        live = LiveBytes()
        with KnownAnswers(), live, torch.no_grad():
            sides = find_loss(self.plan.task).inputs_from_row(pipe, row, self.options.data.extra_inputs)
            sides = run(self.stages.split.once, pipe, sides)
            entry = rounded(pick(sides, self.stages.needs), self.plan.dtype)
        return live.peak, entry

    def _train(self, module: TaskModule, entry: dict[str, Any]) -> tuple[int, int, int]:
        """Return the peak bytes of a step without the weights, its activations and the optimizer's state."""
        parameters, live = module.trainable_modules(), LiveBytes()
        optimizer = self.plan.optimizer(parameters)
        batch = [{CACHED: entry, "seed": number} for number in range(self.options.training.batch_size)]
        precision = torch.autocast("cpu", self.plan.dtype, enabled=self.plan.dtype != torch.float32)
        state = activations = 0
        with KnownAnswers(), live:
            for _ in range(2):  # the optimizer's state exists from the second step on
                state = live.now
                live.start_peak()
                for _ in range(min(self.options.training.gradient_accumulation_steps, 2)):
                    before = live.now
                    with precision:
                        loss = module(batch)
                    kept = live.now - before
                    loss.backward()
                    del loss
                gradients = tensor_bytes([p.grad for p in parameters if p.grad is not None])
                activations = max(kept, live.peak - state - gradients)
                torch.nn.utils.clip_grad_norm_(parameters, self.options.training.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        return live.peak, activations, state

    def _largest_converted_file(self) -> int:
        loaded = self.places.components if self.plan.components is None else self.plan.components
        names = [name for name in loaded if name in self.places.components]
        files = [(name, file) for name in names for file in weight_files(self.places.components[name])]
        stored = {file: {entry["dtype"] for entry in _entries_of(file)} for _, file in files}
        sizes = [file.stat().st_size for name, file in files if stored[file] != {STORED_AS[self._dtype_of(name)]}]
        return max(sizes, default=0)

    def _dtype_of(self, component: str) -> torch.dtype:
        """Return the dtype that a component is loaded in: float32 if it is trained as a whole."""
        whole = {name.split(".")[0] for name in self.options.training.trainable_models or ()}
        return torch.float32 if component in whole else self.plan.dtype

    def _steps(self) -> tuple[int, int]:
        """Return the number of steps and the number of saves of the run."""
        training, source = self.options.training, self.plan.source
        buckets = None
        if training.batch_size > 1 and not isinstance(source, CachedDataset):
            buckets = source.buckets()
        batches = BatchPlan(len(source), training.batch_size, training.seed, buckets)
        rounds = MicroBatches(batches, 0, self.plan.accelerator.num_processes, training.gradient_accumulation_steps)
        epoch = math.ceil(len(rounds) / training.gradient_accumulation_steps)
        steps = training.max_steps or training.num_epochs * epoch
        save_steps = self.options.output.save_steps
        if save_steps is not None:
            return steps, math.ceil(steps / save_steps)
        return steps, 1 if training.max_steps else training.num_epochs

    def _saved_bytes(self, module: TaskModule) -> int:
        size = 4
        if self.options.adapter.wants_lora and self.options.training.trainable_models is None:
            size = getattr(torch, self.options.adapter.lora_dtype).itemsize
        return size * module.count_parameters()["trained"]

    def _entries(self) -> int:
        return 0 if isinstance(self.plan.source, CachedDataset) else len(self.plan.source.numbers)

    def _count(self, module: TaskModule, pipe: BasePipeline) -> dict[str, int]:
        parts = {name: sum(p.numel() for p in model.parameters()) for name, model in pipe.components.items()}
        return {**module.count_parameters(), **parts}


def _places(resolved: ResolvedModel, components: Sequence[str] | None) -> ComponentPaths:
    """Return the paths of the components on the disk; a dry run downloads nothing."""
    places = find_component_paths(resolved.family, resolved.configs_of(components), resolved.reader_configs)
    require_configs(resolved.family, places)
    return places


def _weights(pipe: BasePipeline, names: Sequence[str]) -> int:
    return sum(tensor_bytes(getattr(pipe, name).parameters()) for name in names if getattr(pipe, name) is not None)


def _entries_of(file: Path) -> list[dict[str, Any]]:
    """Return the header entry of each tensor of a safetensors file."""
    header, _ = safetensors_header(file)
    return [entry for name, entry in header.items() if name != "__metadata__"]


def _entry_bytes(entry: dict[str, Any]) -> int:
    """Return the bytes of an entry in a cache: its tensors, and the pixels of its pictures."""
    pictures = [
        each for value in entry.values() if isinstance(value, list) for each in value if isinstance(each, Image)
    ]
    pixels = sum(picture.width * picture.height * len(picture.getbands()) for picture in pictures)
    return pixels + tensor_bytes([value for value in entry.values() if isinstance(value, torch.Tensor)])


def _numbers(value: Any) -> int:
    return value.numel() if isinstance(value, torch.Tensor) else 0


def _product(sizes: Any) -> int:
    """Return the number of pixels in nested lists of (width, height): the sum of their products."""
    if isinstance(sizes, int):
        return sizes
    if not isinstance(sizes, tuple):
        return 0
    if all(isinstance(each, int) for each in sizes):
        return math.prod(sizes)
    return sum(_product(each) for each in sizes)
