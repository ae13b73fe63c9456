"""The cases that templates.py times, each a process: pictures with and without a template, and training both ways."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.ours import Metronome
from benchmarks.worker import MicroBatches, main


def infer(settings: dict[str, Any], rounds: MicroBatches) -> None:
    """Make two pictures a round, with the template and without it, each first in every other round.

    In one process, on the same weights, and in CPU time: the difference is smaller than what two processes, or the
    wall clock, differ by from one round to the next.
    """
    import torch

    from dsctl_core import ModelConfig
    from dsctl_core.families.resolve import resolve_model
    from dsctl_core.template import TemplatePipeline

    pipe = resolve_model(settings["model"]).load_pipeline(torch_dtype=torch.float32, device=settings["device"])
    templates = TemplatePipeline.from_pretrained(
        torch_dtype=torch.float32,
        device=settings["device"],
        model_configs=[ModelConfig(path=settings["template"])],
        trust_template=True,
    )
    wanted = {"prompt": settings["prompt"], "height": settings["size"], "width": settings["size"]}
    wanted |= {"num_inference_steps": settings["inference_steps"], "cfg_scale": settings["cfg_scale"]}

    def both(number: int) -> dict[str, Any]:
        seconds = {}
        for steered in (False, True) if number % 2 else (True, False):
            began = time.process_time()
            if steered:
                templates(pipe, **wanted, seed=number, template_inputs=[{"scale": 0.8}])
            else:
                pipe(**wanted, seed=number)
            seconds["steered" if steered else "plain"] = time.process_time() - began
        return seconds

    rounds.repeat(both)


def train(settings: dict[str, Any], rounds: MicroBatches) -> None:
    """Train the template, a round being `steps` steps: from a cache if `settings` has `from_cache`, or in one stage."""
    from dsctl_core.commands.train import train
    from dsctl_core.options import TrainOptions

    data: dict[str, Any] = {"model": settings["model"], "dataset_base_path": settings["dataset"], "cache": False}
    data |= {"dataset_metadata_path": settings["metadata"], "extra_inputs": ["template_inputs"]}
    if settings["from_cache"]:
        data = {"from_cache": settings["cache"]}
    with tempfile.TemporaryDirectory() as folder:
        output_path = Path(folder, "run")
        options = TrainOptions(
            **data,
            template=settings["template"],
            trust_template=True,
            trainable_models=["template_model"],
            dataset_repeat=1000,
            batch_size=settings["batch_size"],
            learning_rate=settings["learning_rate"],
            max_steps=10**6,
            device=settings["device"],
            output_path=output_path,
        )
        train(options, Metronome(rounds, settings["steps"], output_path))


if __name__ == "__main__":
    main({"infer": infer, "train": train})
