"""The dsctl side: `dsctl train` as the command runs it, and a family's pipeline as `dsctl infer` runs it."""

from __future__ import annotations

import base64
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.worker import MicroBatches, main


class Metronome:
    """The progress display of a run, which lets it go on for one round at a time."""

    def __init__(self, rounds: MicroBatches, steps: int, output_path: Path) -> None:
        self.rounds, self.steps, self.output_path = rounds, steps, output_path
        self.count, self.training = 0, False

    def start(self, what: str, total: int | None, done: int = 0, unit: str = "step") -> None:
        """Begin: of a training run, everything is loaded by then."""
        self.training = what == "Training"
        if self.training:
            self.rounds.ready()

    def advance(self, n: int = 1, **fields: float | str) -> None:
        """Count steps, and report when a round is full."""
        if not self.training:
            return
        self.count += n
        if self.count % self.steps == 0:
            run = json.loads((self.output_path / "run.json").read_text(encoding="utf-8"))
            self.rounds.done(trained=run["parameters"]["trained"])

    def finish(self) -> None:
        """Ignore the end."""

    def note(self, message: str) -> None:
        """Ignore notes."""


def train(settings: dict[str, Any], rounds: MicroBatches) -> None:
    """Train a LoRA, a round being `steps` steps of it."""
    from dsctl_core.commands.train import train
    from dsctl_core.options import TrainOptions

    with tempfile.TemporaryDirectory() as folder:
        output_path = Path(folder, "run")
        options = TrainOptions(
            model=settings["model"],
            dataset_base_path=settings["dataset"],
            dataset_repeat=1000,
            height=settings["height"],
            width=settings["width"],
            batch_size=settings["batch_size"],
            lora_rank=settings["rank"],
            learning_rate=settings["learning_rate"],
            max_steps=10**6,
            mixed_precision="no",
            cache=False,  # the plain loop encodes at every step too
            device=settings["device"],
            output_path=output_path,
        )
        train(options, Metronome(rounds, settings["steps"], output_path))


def infer(settings: dict[str, Any], rounds: MicroBatches) -> None:
    """Make pictures, one a round."""
    import torch

    from dsctl_core.families.resolve import resolve_model

    resolved = resolve_model(settings["model"])
    pipe = resolved.load_pipeline(torch_dtype=torch.float32, device=settings["device"])

    def picture(number: int) -> dict[str, Any]:
        image = pipe(
            settings["prompt"],
            negative_prompt="",
            cfg_scale=settings["cfg_scale"],
            height=settings["height"],
            width=settings["width"],
            num_inference_steps=settings["inference_steps"],
            seed=number,
        )
        return {"picture": base64.b64encode(image.tobytes()).decode()}

    rounds.repeat(picture)


if __name__ == "__main__":
    main({"train": train, "infer": infer})
