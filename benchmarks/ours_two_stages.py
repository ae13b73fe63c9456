"""The dsctl side of the two stages: `dsctl cache` and `dsctl train --from-cache` as the commands run them."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.ours import Metronome
from benchmarks.worker import MicroBatches, main


def encode(settings: dict[str, Any], rounds: MicroBatches) -> None:
    """Encode the dataset into a cache, a round being all of it, with everything loaded before."""
    from dsctl_core.options import CacheOptions
    from dsctl_core.progress import NoProgress
    from dsctl_core.stages.encode import encode_dataset
    from dsctl_core.training.plan.encode import plan_encoding

    options = CacheOptions(
        model=settings["model"],
        dataset_base_path=settings["dataset"],
        output_path=Path(settings["folder"]) / "cache",
        batch_size=settings["encode_batch_size"],
        mixed_precision="no",
        device="cpu",
    )
    plan = plan_encoding(options)
    whole = plan.load(plan.stages.first_components)
    encoder = replace(plan.encoder(), load=lambda _: whole)

    def once(number: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=settings["folder"]) as folder:
            encode_dataset(Path(folder), plan.dataset, encoder, plan.settings(), NoProgress())
        return {}

    rounds.repeat(once)


def cached(settings: dict[str, Any], rounds: MicroBatches) -> None:
    """Train from a cache, a round being `steps` steps."""
    from dsctl_core.commands.train import train
    from dsctl_core.options import TrainOptions

    with tempfile.TemporaryDirectory() as folder:
        output_path = Path(folder, "run")
        options = TrainOptions(
            from_cache=settings["cache"],
            dataset_repeat=1000,
            batch_size=settings["batch_size"],
            lora_rank=settings["rank"],
            learning_rate=settings["learning_rate"],
            max_steps=10**6,
            device="cpu",
            output_path=output_path,
        )
        train(options, Metronome(rounds, settings["steps"], output_path))


if __name__ == "__main__":
    main({"encode": encode, "cached": cached})
