"""Estimate what a run needs, parameters, memory by part, disk and steps, without loading any weights.

The networks are built from their configs with fake tensors, and one sample of the largest size goes through both
stages and two full training steps with the real code, while the bytes of live tensors are counted.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from dsctl_core.cache.reader import CACHED, CachedDataset
from dsctl_core.checkpoint.identify import weight_files
from dsctl_core.data.sampler import BatchPlan
from dsctl_core.errors import DsctlError
from dsctl_core.files.safetensors import tensor_entries
from dsctl_core.memory.blocks import blocks_by_list
from dsctl_core.memory.float8 import float8_layers
from dsctl_core.memory.fused import use_fused_norms
from dsctl_core.memory.offload import held_bytes, offload_blocks
from dsctl_core.memory.quantize import CAST, FP8, hold_packed, packable_numbers
from dsctl_core.memory.recompute import checkpoint_some
from dsctl_core.training.dry_run.fake_tensors import (
    KnownAnswers,
    LiveBytes,
    Simulation,
    quiet_conversion,
    replaced_when_converted,
    tensor_bytes,
)
from dsctl_core.training.dry_run.gpu_rules import cuda_autocast, reserved
from dsctl_core.training.dry_run.process_memory import available_memory, warm_up
from dsctl_core.training.dry_run.simulated import EncodedRow, SimulatedModel, encode_row, entry_bytes, largest
from dsctl_core.training.dry_run.traffic import Traffic, traffic_of_training
from dsctl_core.training.dry_run.verdict import verdict
from dsctl_core.training.loop.batches import MicroBatches
from dsctl_core.training.model.stored import STORED_AS, is_stored_in
from dsctl_core.training.model.task_module import TaskModule
from dsctl_core.training.plan.module import task_module

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline
    from dsctl_core.training.model.weight_edits import WeightEdits
    from dsctl_core.training.plan.plan import TrainingPlan


@dataclass(frozen=True)
class Memory:
    """Memory in bytes by part, in the order in which a run allocates them; `peak` is the maximum over the run.

    `process` is the memory of the program before anything is loaded, which counts on a CPU only. `activations` is the
    larger of what forward keeps for backward and what backward allocates beside weights, gradients and state. `ema` is
    the average of the trained weights. `step` is the largest moment of stage two, beside process and weights.
    """

    process: int
    stage_one: int
    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    saving: int
    step: int
    peak: int


@dataclass(frozen=True)
class DryRun:
    """The needs of a run. Sizes in bytes; `disk` is the size of all files that it leaves.

    `available_memory` is the memory of the device of this machine. `not_on_disk` are the components of which only the
    published config was used.
    """

    parameters: dict[str, int]
    memory: Memory
    disk: dict[str, int]
    steps: int
    saves: int
    sample: dict[str, Any]
    device: str
    available_memory: int
    traffic: Traffic | None = None
    not_on_disk: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the peak is at most the memory of the device."""
        return self.memory.peak <= self.available_memory

    @property
    def verdict(self) -> list[str]:
        """Sentences about whether it fits."""
        return verdict(self.memory.peak, self.available_memory, self.device, self.not_on_disk)

    def facts(self) -> dict[str, Any]:
        """Return all values as a JSON object."""
        return {**asdict(self), "fits": self.fits}


def estimate(plan: TrainingPlan, depth: int | None = None, card: int | None = None, nodes: int | None = None) -> DryRun:
    """Estimate what the run of `plan` needs. Nothing is written or trained, and no model downloaded.

    With `nodes`, also what so many machines read, write and ask.

    With `depth` the denoisers have only so many blocks of each kind. `card` is the memory of a GPU in bytes that the
    run would have; without it, the run is one on the device of `plan`.
    Raises DsctlError for a template with code that reads the values of tensors.
    """
    try:
        found = Estimate(plan, depth, card, nodes=nodes or 1).result()
        if nodes is None:
            return found
        traffic = traffic_of_training(plan, found.steps, found.saves, found.disk, nodes)
        return replace(found, traffic=traffic)
    except DsctlError as error:
        if isinstance(error.__cause__, DataDependentOutputException | DynamicOutputShapeException):
            hint = (
                "a dry run has tensors without numbers, so .item(), .tolist() and `if tensor` fail: leave --dry-run out"
            )
            raise DsctlError(error.problem, hint=hint) from error
        raise


@dataclass(frozen=True)
class Encoded:
    """A row of a run's first stage: with the tensors of `simulation`, and what making it took, in bytes.

    `largest` is the component with most weights that can be packed, of those that the second stage does not need; ""
    without one.
    """

    simulation: Simulation
    entry: dict[str, Any]
    index: int
    encoding: int
    stage_one: int
    largest: str


class Estimate:
    """The estimate of one run; `encoded` is the row of another that has the same first stage."""

    def __init__(
        self,
        plan: TrainingPlan,
        depth: int | None = None,
        card: int | None = None,
        longer: str = "",
        encoded: Encoded | None = None,
        nodes: int = 1,
    ) -> None:
        self.plan, self.options, self.stages = plan, plan.options, plan.stages
        only = isinstance(plan.source, CachedDataset) or (encoded is not None and plan.cached)
        self.model = SimulatedModel(plan.model, plan.components if only else None, depth, longer)
        self.encoded, self.nodes = encoded, nodes
        self.simulation = Simulation() if encoded is None else encoded.simulation
        self.sizes: tuple[tuple[int, ...], ...] = ()  # of the blocks of each denoiser
        self.lists: dict[str, int] = {}  # the numbers of blocks of a denoiser that there are, by the name of their list
        self.card, self.on_gpu = card, card is not None or plan.accelerator.device.type == "cuda"

    def encode(self) -> Encoded:
        """Simulate the first stage alone, without the denoisers where it needs none."""
        later = set(self.stages.second_components) - set(self.stages.first_components)
        without = [*self.stages.idle, *later] if self.plan.cached else self.stages.idle
        return self._encode_largest(self.model.pipeline(self.simulation, self.plan.dtype, self._dtype_of, without))

    def result(self) -> DryRun:
        """Simulate the run and return its needs."""
        pipe = self.model.pipeline(self.simulation, self.plan.dtype, self._dtype_of, self.stages.idle)
        on_cpu = not self.on_gpu
        process = warm_up(self.plan.dtype) if on_cpu else 0
        plan = self.plan
        if self.encoded is None:  # encoders that stay are packed by then
            plan = plan if plan.cached else replace(plan, use=replace(plan.use, edits=self._edits(in_first=False)))
            self.encoded = self._encode_largest(pipe)
        encoded = self.encoded
        if self.plan.cached:
            for name in set(pipe.components) - set(self.stages.second_components):
                setattr(pipe, name, None)
        with replaced_when_converted():
            module = task_module(plan, pipe, read_loras=False)
        self.simulation.take(module)
        denoisers = pipe.denoiser_modules()
        self.sizes = tuple(map(self._block_sizes, denoisers))
        self.lists = {name: len(own) for name, own in blocks_by_list(denoisers[0]).items()}
        for network in pipe.iteration_modules().values():
            use_fused_norms(network)
        slabs = [slab for denoiser in denoisers for slab in self._pull_levers(denoiser)]
        trained = tensor_bytes(module.trainable_modules())
        weights = tensor_bytes([*module.parameters(), *module.buffers(), *slabs])
        step_peak, activations, state = self._train(module, encoded.entry)
        # Saved weights are copied to the host, and read back to verify the file.
        saving = 2 * trained if on_cpu else 0
        ema = trained if self.options.optim.ema_decay is not None else 0
        inside = ema + max(step_peak, saving + state) + (0 if self.plan.cached else encoded.encoding)
        if on_cpu:
            # While a file is converted to another dtype, its mapped pages count beside the converted tensors;
            # without a conversion the tensors are these pages.
            inside = max(inside, self._largest_converted_file())
        peak = process + max(encoded.stage_one, weights + inside)
        if self.on_gpu:
            peak = reserved(peak, weights)
        memory = Memory(process, encoded.stage_one, weights, trained, state, ema, activations, saving, inside, peak)
        steps, saves = self._steps()
        disk = {
            "checkpoints": saves * self._saved_bytes(module) * (2 if ema else 1),
            "state": min(saves, self.options.output.state_total_limit) * (trained + state + ema),
            "cache": self._entries() * entry_bytes(encoded.entry) if self.plan.encoding is not None else 0,
        }
        disk["total"] = sum(disk.values())
        tensors = {name: value for name, value in encoded.entry.items() if isinstance(value, torch.Tensor)}
        size = {"row": encoded.index, "shapes": {name: list(tensor.shape) for name, tensor in tensors.items()}}
        device = self.plan.accelerator.device
        return DryRun(
            self._count(module, pipe),
            memory,
            disk,
            steps,
            saves,
            size,
            device="cuda" if self.on_gpu else device.type,
            available_memory=available_memory(device) if self.card is None else self.card,
            not_on_disk=tuple(self.model.missing),
        )

    def _block_sizes(self, network: nn.Module) -> tuple[int, ...]:
        """Return the bytes of each block of a network at its full depth that can wait in main memory."""
        sizes = {name: list(map(held_bytes, own)) for name, own in blocks_by_list(network).items()}
        for name, known in sizes.items():
            known += known[-1:] * (self.model.cut.get(name, 0) - len(known))
        return tuple(size for known in sizes.values() for size in known)

    def _pull_levers(self, denoiser: nn.Module) -> list[Tensor]:
        """Apply the numbers of blocks to a denoiser, and return what offloaded ones are copied to."""
        memory = self.options.memory
        if memory.gradient_checkpointing_blocks is not None:
            checkpoint_some(denoiser, memory.gradient_checkpointing_blocks)
        for layer in map(denoiser.get_submodule, float8_layers(denoiser) if memory.float8 else ()):
            assert isinstance(layer, nn.Linear)
            if not layer.weight.requires_grad:  # held in 8 bits, and multiplied here in the precision of the run
                hold_packed(layer, layer.weight.detach().to(FP8), {}, CAST.unpack, self.plan.dtype)
        if not memory.offload_blocks:
            return []
        # The weights have no bytes, and everything is on one device: what is no parameter any more does not count.
        store = offload_blocks(denoiser, memory.offload_blocks, torch.device("cpu"))
        store.allocate()
        return store.slabs

    def _encode_largest(self, pipe: BasePipeline) -> Encoded:
        sample, index = self._largest()
        encoded = EncodedRow(0, sample[CACHED], 0) if CACHED in sample else self._encode(pipe, sample)
        encoding, entry = encoded.peak, encoded.entry
        stage_one = encoded.weights + encoding if self.plan.encoding is not None else 0
        first = set(self.stages.first_components) - set(self.stages.second_components)
        numbers = {
            name: packable_numbers(model)
            for name, model in sorted(pipe.components.items())
            if name in first and name not in self.model.stored
        }
        largest = max(filter(numbers.get, numbers), key=numbers.__getitem__, default="")
        return Encoded(self.simulation, entry, index, encoding, stage_one, largest)

    def _largest(self) -> tuple[dict[str, Any], int]:
        """Return the sample with the most pixels, and its position."""
        source = self.plan.source
        if not isinstance(source, CachedDataset):
            index = largest(source)
            return dict(source[index]), index
        sizes = [sum(_numbers(value) for value in source.sample(e).values()) for e in source.entries]
        index = source.mixture.position_of(max(range(len(sizes)), key=sizes.__getitem__))
        return dict(source[index]), index

    def _encode(self, pipe: BasePipeline, row: dict[str, Any]) -> EncodedRow:
        """Encode one row on fake tensors."""
        self._edits(in_first=True).pack(pipe, pipe.device)
        return encode_row(pipe, self.stages, self.plan.task, self.options.data.extra_inputs, row, self.plan.dtype)

    def _edits(self, *, in_first: bool) -> WeightEdits:
        """Return the edits of components that only the first stage needs, or those of all others."""
        edits, first = self.plan.use.edits, set(self.stages.first_components) - set(self.stages.second_components)
        return replace(
            edits,
            fp8=tuple(name for name in edits.fp8 if (name in first) is in_first),
            quantized=tuple(pair for pair in edits.quantized if (pair[0] in first) is in_first),
        )

    def _train(self, module: TaskModule, entry: dict[str, Any]) -> tuple[int, int, int]:
        """Return the peak bytes of a step without the weights, its activations and the optimizer's state."""
        parameters, live = module.trainable_modules(), LiveBytes()
        optimizer = self.plan.optimizer(parameters)
        batch = [{CACHED: entry, "seed": number} for number in range(self.options.training.batch_size)]
        precision = torch.autocast("cpu", self.plan.dtype, enabled=self.plan.dtype != torch.float32)
        rules = cuda_autocast() if self.on_gpu else nullcontext()
        kept = 0

        def made_anew() -> int:
            # Weights in 8 bits are new tensors after each call, and were counted with the weights before.
            return live.counted(module.parameters())

        with KnownAnswers(), quiet_conversion(), replaced_when_converted(), live, rules:
            for _ in range(min(self.options.training.gradient_accumulation_steps, 2)):
                before = live.now - made_anew()
                with precision:
                    loss = module(batch)
                kept = live.now - made_anew() - before
                loss.backward()
                del loss
            gradients = tensor_bytes([p.grad for p in parameters if p.grad is not None])
            backward_peak = live.peak - made_anew()
            lasting = live.now - made_anew() - gradients  # what a first forward pass makes for those after it
            for _ in range(2):  # the optimizer's state exists from the second time on
                live.start_peak()
                torch.nn.utils.clip_grad_norm_(parameters, self.options.training.max_grad_norm)
                optimizer.step()
            update_peak = live.peak - made_anew()
            optimizer.zero_grad()
            state = live.now - made_anew()
        activations = max(kept, backward_peak - lasting - gradients)
        return max(backward_peak - lasting + state, update_peak), activations, state

    def _largest_converted_file(self) -> int:
        places = self.model.places.components
        names = [name for name in self.plan.components or places if name in places]
        files = [(name, file) for name in names for file in weight_files(places[name])]
        stored = {file: {entry["dtype"] for entry in tensor_entries(file).values()} for _, file in files}
        sizes = [file.stat().st_size for name, file in files if stored[file] != {STORED_AS[self._dtype_of(name)]}]
        return max(sizes, default=0)

    def _dtype_of(self, component: str) -> torch.dtype:
        """Return the dtype that a component is loaded in: float32 if it is trained, unless its files are in another."""
        whole = {name.split(".")[0] for name in self.options.training.trainable_models or ()}
        place = self.model.places.components.get(component)
        if component not in whole or (place is not None and is_stored_in(place, self.plan.dtype)):
            return self.plan.dtype
        return torch.float32

    def _steps(self) -> tuple[int, int]:
        """Return the number of steps and the number of saves of the run."""
        training, source = self.options.training, self.plan.source
        buckets = None
        if training.batch_size > 1 and not isinstance(source, CachedDataset):
            buckets = source.buckets()
        batches = BatchPlan(len(source), training.batch_size, training.seed, buckets, source.mixture.blocks)
        processes = (self.options.processes.num_processes or self.plan.accelerator.num_processes) * self.nodes
        rounds = MicroBatches(batches, 0, processes, training.gradient_accumulation_steps)
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
        return 0 if isinstance(self.plan.source, CachedDataset) else len(self.plan.source.rows_in_use)

    def _count(self, module: TaskModule, pipe: BasePipeline) -> dict[str, int]:
        parts = {name: sum(p.numel() for p in model.parameters()) for name, model in pipe.components.items()}
        return {**module.count_parameters(), **parts}


def _numbers(value: Any) -> int:
    return value.numel() if isinstance(value, torch.Tensor) else 0
