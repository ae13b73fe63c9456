"""Compare what the dry run predicts with what a GPU that is not there has at once: for models and levers.

python -m tests.fake_gpu --matrix                                  # a model of each family; about half an hour
python -m tests.fake_gpu --matrix flux1-fill-dev --depth 0         # with all blocks
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.model_data import write_data
from dsctl_core.training.dry_run.estimate import Encoded
from tests.fake_gpu.drawing import draw
from tests.fake_gpu.training import train

MODELS = (
    "qwen-image",
    "qwen-image-edit-2511",
    "qwen-image-layered",
    "flux1-dev",
    "flux2-klein-base-4b",
    "z-image",
    "wan2.1-t2v-1.3b",
    "wan2.1-i2v-14b-480p",
    "wan2.2-ti2v-5b",
    "wan2.1-vace-1.3b",
)
LORA: dict[str, Any] = {"lora_rank": 32}
FULL: dict[str, Any] = {"trainable_models": "dit"}
RECOMPUTED: dict[str, Any] = {"use_gradient_checkpointing": True}
TRAININGS: dict[str, dict[str, Any]] = {
    "LoRA": {**LORA, "encode": True},
    "LoRA, recomputed": {**LORA, **RECOMPUTED},
    "LoRA, some recomputed": {**LORA, **RECOMPUTED, "gradient_checkpointing_blocks": 1},
    "LoRA, int8": {**LORA, "quantize": "dit=int8"},
    "LoRA, nf4, recomputed": {**LORA, **RECOMPUTED, "quantize": "dit=nf4"},
    "LoRA, fp8": {**LORA, "fp8_models": "dit"},
    "LoRA, fp8, blocks offloaded": {**LORA, "fp8_models": "dit", "offload_blocks": 2},
    "LoRA, recomputed, blocks offloaded": {**LORA, **RECOMPUTED, "offload_blocks": 2},
    "LoRA, blocks offloaded": {**LORA, "offload_blocks": 2},
    "LoRA, inputs offloaded": {**LORA, **RECOMPUTED, "use_gradient_checkpointing_offload": True},
    "full": FULL,
    "full, recomputed": {**FULL, **RECOMPUTED},
}
DRAWINGS: dict[str, dict[str, Any]] = {
    "infer": {"offload": "none"},
    "infer, components": {"offload": "components"},
    "infer, blocks": {"offload": "blocks"},
    "infer, int8": {"offload": "components", "quantize": "dit=int8,text_encoder=int8"},
    "infer, nf4": {"offload": "none", "quantize": "dit=nf4,text_encoder=nf4"},
}
CLOSE = 0.1  # of what is counted, which a prediction may be off


@dataclass(frozen=True)
class Line:
    """A model and a lever: bytes predicted and counted, and what nothing may do."""

    model: str
    lever: str
    predicted: int
    counted: int
    faults: tuple[str, ...]
    seconds: float

    @property
    def off(self) -> float:
        """What the prediction is off, as a share of what is counted."""
        return self.predicted / self.counted - 1 if self.counted else 0.0

    @property
    def holds(self) -> bool:
        """Whether the prediction is close, and nothing is at fault."""
        return not self.faults and self.counted > 0 and abs(self.off) <= CLOSE

    def __str__(self) -> str:
        sizes = f"{self.predicted / 2**30:.2f} | {self.counted / 2**30:.2f} | {self.off:+.1%}"
        return f"| {self.model} | {self.lever} | {sizes} | {'; '.join(self.faults) or 'none'} | {self.seconds:.0f} |"


HEADER = "| model | lever | predicted GiB | counted GiB | off | faults | seconds |\n|---|---|---|---|---|---|---|"


def matrix(models: tuple[str, ...], depth: int | None) -> Iterator[Line]:
    """Yield a line for each model and lever, of models with `depth` blocks of each kind (None: all)."""
    for model in models:
        data, rows = write_data(model, Path()), dict[str, Encoded]()
        for lever, asked in TRAININGS.items():
            yield from _tried(model, lever, partial(_trained, depth, {"model": model, "rows": rows, **data, **asked}))
        for lever, asked in DRAWINGS.items():
            yield from _tried(model, lever, partial(_drawn, depth, model, asked))


def _tried(model: str, lever: str, run: Callable[[], dict[str, tuple[int, int, list[str]]]]) -> Iterator[Line]:
    """Yield the lines of what `run` finds; an error is a fault."""
    began = time.perf_counter()
    try:
        found = run()
    except Exception as error:  # noqa: BLE001 - the other lines are worth having
        found = {lever: (0, 0, [f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]])}
    seconds = time.perf_counter() - began
    for name, (predicted, counted, faults) in found.items():
        yield Line(model, name or lever, predicted, counted, tuple(faults), seconds)


def _trained(depth: int | None, asked: dict[str, Any]) -> dict[str, tuple[int, int, list[str]]]:
    encode = asked.pop("encode", False)
    run = train(depth, encode=encode, **asked)
    found = {"": (run.predicted["weights"] + run.predicted["step"], run.peak, run.faults)}
    if encode:
        found["encode"] = (run.encode["predicted"], run.encode["peak"], [])
    return found


def _drawn(depth: int | None, model: str, asked: dict[str, Any]) -> dict[str, tuple[int, int, list[str]]]:
    run = draw(depth, model=model, **asked)
    return {"": (run.predicted, run.peak, run.faults)}
