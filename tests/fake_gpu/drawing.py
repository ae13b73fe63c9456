"""Draw on fake CUDA tensors by the code of `dsctl infer`: load nothing, encode the prompt, denoise, decode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.model_data import PROMPT, inputs_of
from dsctl_core import pipeline
from dsctl_core.commands import infer as inference
from dsctl_core.commands import infer_offload
from dsctl_core.families.resolve import ResolvedModel, resolve_model
from dsctl_core.options import InferOptions
from dsctl_core.options.quantize import quantized_pairs
from dsctl_core.progress import NoProgress
from dsctl_core.training.dry_run.drawing import drawing_memory
from tests.fake_gpu.counting import Gpu
from tests.fake_gpu.loading import loads_fakes, wide_weights
from tests.fake_gpu.training import shown

STEPS = 2


@dataclass
class Drawn:
    """What a drawing did. `peaks` are the most bytes of each part of it, and `step` the counts of its last step.

    `predicted` is the peak that the dry run gives for the same placement, and `blocks` the number of those that wait.
    """

    offload: str = ""
    blocks: int | None = None
    predicted: int = 0
    note: str = ""
    peaks: dict[str, int] = field(default_factory=dict)
    step: dict[str, Any] = field(default_factory=dict)
    peak: int = 0
    faults: list[str] = field(default_factory=list)


class _Watch(NoProgress):
    """Divides a drawing into its parts, and each part into steps."""

    def __init__(self, gpu: Gpu, drawn: Drawn) -> None:
        self.gpu, self.drawn = gpu, drawn

    def note(self, message: str) -> None:
        """Keep the line that says what waits in main memory."""
        self.drawn.note = message if "--offload" in message else self.drawn.note

    def ends(self, part: str) -> None:
        """Take the peak since the last part as that of `part`, and count anew."""
        self.drawn.peaks[part] = max(self.drawn.peaks.get(part, 0), self.gpu.peak)
        self.drawn.peak = max(self.drawn.peak, self.gpu.peak)
        self.gpu.start()

    def start(self, what: str, total: int | None, done: int = 0, unit: str = "step") -> None:
        """Take what was before as loading."""
        self.ends("load")

    def advance(self, n: int = 1, **fields: float | str) -> None:
        """Take the counts of a step."""
        self.drawn.step = shown(self.gpu)
        waits = sum(self.gpu.counts.waits.values())
        if waits > 1:
            self.drawn.faults.append(f"{waits} waits of the host in a step: {dict(self.gpu.counts.waits)}")
        self.ends("steps")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take what comes before the first step as encoding."""
        plain = pipeline.denoise

        def denoise(*arguments: Any, **named: Any) -> Tensor:
            self.ends("encode")
            return plain(*arguments, **named)

        with patch.object(pipeline, "denoise", denoise):
            yield
        self.ends("decode")


def draw(depth: int | None, **asked: Any) -> Drawn:
    """Draw with the options `asked`, with `depth` blocks of each kind (None: all), and return what was found."""
    gpu, drawn = Gpu(), Drawn()
    watch, resolved = _Watch(gpu, drawn), resolve_model(asked["model"])
    pictures = {n: [file] if n == "edit_image" else file for n, file in inputs_of(resolved).items()}
    suffix = ".png" if resolved.family.time_division is None else ".mp4"
    named = {"prompt": PROMPT, "num_inference_steps": STEPS, "output": Path(f"drawn{suffix}")}
    options = InferOptions(device="cuda", **{**named, **pictures, **asked})

    def place(pipe: Any, waiting: infer_offload.Waiting) -> None:
        drawn.offload, drawn.blocks = waiting.place, waiting.blocks
        drawn.faults += wide_weights(pipe.components, torch.bfloat16)
        infer_offload.place(pipe, waiting)

    def choose(asked: InferOptions, model: ResolvedModel, device: Any, dtype: Any, call: Any) -> Any:
        waiting, why = infer_offload.choose_offload(asked, model, device, dtype, call)
        memory = drawing_memory(model, call, dtype, dict(quantized_pairs(asked.quantize)), depth)
        blocks = waiting.blocks or (memory.most_blocks if waiting.place == "blocks" else 0)
        drawn.predicted = memory.peak(apart=waiting.place != "none", waiting_blocks=blocks)
        return waiting, why

    with (
        patch.object(inference, "resolve_model", lambda *_: resolved),
        patch.object(inference, "require_library", lambda _: None),
        patch.object(inference, "choose_offload", choose),
        patch.object(inference, "place", place),
        patch.object(inference, "write_made", lambda file, *_: [file]),
        patch.object(infer_offload, "component_bytes", _bytes_of(gpu, depth)),
        gpu.running(),
        loads_fakes(gpu, depth),
        watch.watching(),
    ):
        inference.infer(options, watch)
    return drawn


def _bytes_of(gpu: Gpu, depth: int | None) -> Any:
    """Return what stands for `component_bytes`, which reads the headers of files that are not there."""

    def component_bytes(options: InferOptions, resolved: ResolvedModel, dtype: torch.dtype) -> dict[str, int]:
        formats = dict(quantized_pairs(options.quantize))
        with loads_fakes(gpu, depth):
            pipe = resolved.load_pipeline(torch_dtype=dtype, device="cpu")
        numbers = {name: sum(each.numel() for each in model.parameters()) for name, model in pipe.components.items()}
        packed = {name: infer_offload.PACKED.get(formats.get(name, ""), dtype.itemsize) for name in numbers}
        return {name: int(count * packed[name]) for name, count in numbers.items()}

    return component_bytes
