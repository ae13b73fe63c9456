"""The dsctl side of train_step.py: `dsctl train --from-cache` as the command runs it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.ours import Metronome
from benchmarks.worker import MicroBatches, main


def step(settings: dict[str, Any], rounds: MicroBatches) -> None:
    """Train from a cache, a round being `steps` steps."""
    from dsctl_core.commands.train import train
    from dsctl_core.options import TrainOptions

    with tempfile.TemporaryDirectory() as folder:
        output_path = Path(folder, "run")
        options = TrainOptions(
            from_cache=settings["cache"],
            dataset_repeat=1000,
            lora_rank=settings["rank"],
            learning_rate=settings["learning_rate"],
            mixed_precision=settings["precision"],
            use_gradient_checkpointing=settings["recompute"],
            max_steps=10**6,
            device="cpu",
            output_path=output_path,
        )
        train(options, Metronome(rounds, settings["steps"], output_path))


if __name__ == "__main__":
    main({"step": step})
