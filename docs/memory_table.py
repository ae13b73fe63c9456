"""Write the table of docs/guides/memory.md: what --fit chooses for a LoRA on published models, by the memory of a GPU.

    python docs/memory_table.py qwen-image z-image    # prints the rows of these models; minutes for each

The predictions are those of the dry run, so no GPU and no weights are needed.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.gpu_case import options_of
from dsctl_core.errors import DsctlError
from dsctl_core.options import TrainOptions
from dsctl_core.progress import NoProgress
from dsctl_core.training.fit.choose import Fit, choose
from dsctl_core.training.fit.fit import GB
from dsctl_core.training.fit.predict import Prediction, Predictor
from dsctl_core.training.plan.plan import plan_training

CARDS = (12, 16, 24, 32, 48, 80, 141)


def row(model: str) -> str:
    """Return the row of `model`."""
    with tempfile.TemporaryDirectory() as folder:
        options = options_of({"model": model, "device": "cpu", "train": {"lora_rank": 32}}, Path(folder))
        plan = plan_training(options, NoProgress(), offline=True)
        predictor = Predictor(plan, 2**50)
        known: dict[Any, Prediction] = {}

        def predict(asked: TrainOptions) -> Prediction:
            key = (asked.training.use_gradient_checkpointing, asked.training.quantize)
            known.setdefault(key, None)  # type: ignore[arg-type]
            known[key] = known[key] or predictor.predict(asked)
            return known[key]

        # Nothing is packed, so that no library is needed.
        with patch("dsctl_core.training.model.open.require_library", lambda _: None):
            cells = [cell(functools.partial(choose, options, card * GB, predict, ("int8", "nf4"))) for card in CARDS]
        plan.accelerator.end_training()
    return f"| {model} | {' | '.join(cells)} |"


def cell(chosen: Any) -> str:
    """Return what was chosen in a few words."""
    try:
        found: Fit = chosen()
    except DsctlError:
        return "no"
    levers = found.chosen
    words = []
    if levers.get("use_gradient_checkpointing"):
        some = levers.get("gradient_checkpointing_blocks")
        words.append("recompute" if some is None else f"recompute {some}")
    words += list(levers.get("quantize", ()))
    if levers.get("offload_blocks"):
        words.append(f"offload {levers['offload_blocks']}")
    return f"{', '.join(words) or 'as it is'} ({found.peak / GB:.0f})"


if __name__ == "__main__":
    print(f"| LoRA of rank 32 | {' | '.join(f'{card} GB' for card in CARDS)} |")
    print("|---" * (len(CARDS) + 1) + "|")
    for name in sys.argv[1:]:
        print(row(name), flush=True)
