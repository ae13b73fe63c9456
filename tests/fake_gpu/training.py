"""Train on fake CUDA tensors: plan, encode, load nothing, and run the steps of the real loop."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor

from dsctl_core.cache.reader import CACHED
from dsctl_core.losses import find_loss
from dsctl_core.memory.release import release_memory
from dsctl_core.options import TrainOptions
from dsctl_core.progress import NoProgress
from dsctl_core.stages.split import run
from dsctl_core.training.callbacks.base import TrainingHook
from dsctl_core.training.dry_run.estimate import Encoded, Estimate
from dsctl_core.training.loop import loop
from dsctl_core.training.model.task_module import TaskModule
from dsctl_core.training.output.logger import ModelLogger
from dsctl_core.training.plan.module import build_module
from dsctl_core.training.plan.plan import TrainingPlan, plan_training
from dsctl_core.training.state.snapshot import Snapshots
from tests.fake_gpu.counting import Gpu
from tests.fake_gpu.loading import loads_fakes, wide_weights

STEPS = 2


@dataclass
class Found:
    """What a training did: of its encoding and of its last step; `faults` are what no training may do."""

    encode: dict[str, Any] = field(default_factory=dict)
    step: dict[str, Any] = field(default_factory=dict)
    weights: int = 0
    saved: int = 0
    peak: int = 0
    predicted: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def train(
    depth: int | None,
    *,
    encode: bool,
    rows: dict[str, Encoded] | None = None,
    built: Callable[[TaskModule], None] | None = None,
    lengths: list[int] | None = None,
    shorter: int = 0,
    **asked: Any,
) -> Found:
    """Train with the options `asked`, with `depth` blocks of each kind (None: all), and return what was found.

    Without `encode` the row is encoded by the dry run alone, on the CPU; `rows` has those of models that were. `built`
    is called with the module, and `lengths` gets the number of blocks of each kind that the whole model has. The prompt
    of every other row is `shorter` by that many tokens.
    """
    gpu, found, model = Gpu(), Found(), asked["model"]
    rows = {} if rows is None else rows
    options = TrainOptions(device="cuda", mixed_precision="bf16", output_path="never", max_steps=STEPS, **asked)
    with gpu.running(), _every_format():
        plan = plan_training(options, NoProgress(), offline=True)
    dry = Estimate(plan, depth, encoded=rows.get(model) if plan.cached else None)
    found.predicted = asdict(dry.result().memory)
    assert dry.encoded is not None
    rows[model], live, entry = dry.encoded, dry.encoded.encoding, dry.encoded.entry
    if encode:
        found.encode = {**_encode(gpu, plan, depth), "predicted": live}
        release_memory()
        if gpu.now:
            found.faults.append(f"{gpu.now} bytes of the first stage are left when the second begins")
    gpu.peak, first = gpu.now, set(plan.stages.first_components) - set(plan.stages.second_components)
    absent = {*plan.stages.idle, *first}
    with gpu.running(), loads_fakes(gpu, depth, absent), _every_format(), _no_files(), _not_compiled():
        module = build_module(plan, NoProgress())
    if built is not None:
        built(module)
    if lengths is not None:
        lengths += dry.model.cut.values()
    found.weights = gpu.now
    found.faults += wide_weights(module.pipe.components, plan.dtype)
    entries = [entry, _with_shorter_prompt(entry, shorter, module.padded)]
    batches = [{CACHED: entries[number % 2], "_row": number} for number in range(STEPS * options.training.batch_size)]
    with gpu.running(), _unwritten() as logger:
        watch = _Watch(gpu, found)
        loop.launch_training_task(
            *(plan.accelerator, batches, module, logger),
            max_steps=STEPS,
            batch_size=options.training.batch_size,
            optimizer=plan.optimizer,
            hooks=[watch],
        )
        found.saved = _save(plan, module)
        found.peak = max(found.peak, gpu.peak)
    plan.accelerator.end_training()
    waits = sum(watch.waits.values())
    if waits > 1:
        found.faults.append(f"{waits} waits of the host in a micro-batch: {watch.waits}")
    return found


def _with_shorter_prompt(entry: Any, tokens: int, padded: Collection[str]) -> Any:
    """Return a sample with `tokens` fewer in what is padded."""
    prompts = {name: value for name, value in entry.items() if name.partition(".")[2] in padded}
    cut = {name: value[:, : value.shape[1] - tokens] for name, value in prompts.items() if tokens}
    return {**entry, **cut}


def _encode(gpu: Gpu, plan: TrainingPlan, depth: int | None) -> dict[str, Any]:
    """Encode the row on the fake device; return what that took beside the weights."""
    row, names = dict(plan.source[0]), plan.stages.first_components
    with gpu.running(), torch.no_grad(), loads_fakes(gpu, depth, plan.stages.idle):
        pipe = plan.model.load_pipeline(torch_dtype=plan.dtype, device=plan.accelerator.device, only=names)
        held = gpu.now
        gpu.start()
        run(
            plan.stages.split.once,
            pipe,
            find_loss(plan.task).inputs_from_row(pipe, row, plan.options.data.extra_inputs),
        )
    return {**shown(gpu), "peak": gpu.peak - held}


def _save(plan: TrainingPlan, module: TaskModule) -> int:
    """Write what is trained as a run does, up to the bytes, of which fake tensors have none; return their number."""
    written: list[int] = []

    def save_file(tensors: dict[str, Tensor], file: Path, **_: Any) -> None:
        assert not any(each.is_cuda for each in tensors.values())
        written.append(sum(each.nbytes for each in tensors.values()))
        file.touch()

    nothing = lambda *_, **__: None  # noqa: E731
    with (
        patch("safetensors.torch.save_file", save_file),
        patch("dsctl_core.lora.save.verify_lora", nothing),
        patch("dsctl_core.lora.save.verify_original_names", nothing),
        tempfile.TemporaryDirectory() as folder,
    ):
        ModelLogger(folder).save(plan.accelerator, module, STEPS)
    return sum(written)


@contextmanager
def _every_format() -> Iterator[None]:
    """Let weights be held in every format: of fake ones no library packs any."""
    with patch("dsctl_core.training.model.open.require_library", lambda _: None):
        yield


@contextmanager
def _no_files() -> Iterator[None]:
    """Hold what is trained whole in float32, without a look at the dtype of its files, which are not there."""

    def trained_dtypes(_: Any, whole: list[str], __: torch.dtype) -> dict[str, torch.dtype]:
        return dict.fromkeys(whole, torch.float32)

    with patch("dsctl_core.training.plan.module.trained_dtypes", trained_dtypes):
        yield


@contextmanager
def _not_compiled() -> Iterator[None]:
    """Leave out `--compile`: what compiled blocks would fuse is counted kernel by kernel."""
    with patch("dsctl_core.memory.options.compile_blocks", lambda *_: None):
        yield


class _Watch(TrainingHook):
    """Counts each step anew, and keeps what the last one did; the first ones check more, and make the state."""

    def __init__(self, gpu: Gpu, found: Found) -> None:
        self.gpu, self.found, self.waits = gpu, found, {}

    def on_step_end(self, run: Any, record: Any) -> None:
        """Keep the counts of the step."""
        self.found.step, self.waits = shown(self.gpu), dict(self.gpu.counts.waits)
        self.found.peak = max(self.found.peak, self.gpu.peak)
        self.gpu.start()


def shown(gpu: Gpu) -> dict[str, Any]:
    """Return what was counted since the start as plain values."""
    counts = gpu.counts
    return {
        "kernels": counts.kernels,
        "bytes": counts.bytes,
        "fetched": counts.fetched,
        "awaited": counts.awaited,
        "allocated": dict(counts.allocated),
        "waits": dict(counts.waits),
        "most": counts.names.most_common(12),
    }


@contextmanager
def _unwritten() -> Iterator[Any]:
    """Have a loop that writes nothing: fake tensors have no bytes. Yields its logger."""
    nothing = lambda *_, **__: None  # noqa: E731
    logger = SimpleNamespace(output_path=Path(), run=None, files=[Path("none")], continues=None)
    for name in ("on_training_start", "begin", "on_step_end", "on_training_end"):
        setattr(logger, name, nothing)
    logger.save = lambda *_: [Path("none")]
    snapshots = MagicMock(spec=Snapshots, possible=True, settings={"samples_per_step": 1})
    snapshots.bytes.return_value = 0
    with ExitStack() as stack:
        stack.enter_context(patch.object(loop, "Snapshots", lambda *_: snapshots))
        for name in ("rehearse_save", "require_space", "locked"):
            stack.enter_context(patch.object(loop, name, nothing))
        stack.enter_context(patch.object(loop._Loop, "_alone", lambda _: ExitStack()))
        yield logger
