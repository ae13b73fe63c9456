"""The other side of train_step.py: the same steps in plain diffusers, peft and torch. Imports nothing of dsctl."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.plain_two_stages import Trainer
from benchmarks.worker import MicroBatches, main


def classes_of(family: str) -> tuple[Any, type[Trainer]]:
    """Return the transformer's class and what trains it."""
    import diffusers

    from benchmarks.plain_families import TRAINERS
    from benchmarks.plain_z_image import ZImageTrainer

    if family in TRAINERS:
        name, trainer = TRAINERS[family]
        return getattr(diffusers, name), trainer
    if family == "z-image":
        return diffusers.ZImageTransformer2DModel, ZImageTrainer
    return diffusers.QwenImageTransformer2DModel, Trainer


def load_trainer(settings: dict[str, Any]) -> tuple[Trainer, list[tuple[torch.Tensor, Any]]]:
    """Return what trains, in the precision that is asked for, and the encoded samples."""
    transformer_class, trainer_class = classes_of(settings["family"])
    half = settings["precision"] == "bf16"
    dtype = torch.bfloat16 if half else torch.float32
    transformer = transformer_class.from_pretrained(settings["model"], subfolder="transformer", torch_dtype=dtype)
    if settings["recompute"]:
        transformer.enable_gradient_checkpointing()
    trainer = trainer_class(transformer, settings)
    for parameter in trainer.trained:
        parameter.data = parameter.data.float()
    if half:
        transformer.forward = torch.autocast("cpu", torch.bfloat16)(transformer.forward)
    tensors = load_file(settings["encoded"])
    samples: list[tuple[torch.Tensor, Any]] = []
    for number in range(settings["samples"]):
        own = {name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{number}.")}
        latents = own.pop("latents")
        samples.append((latents, own.pop("embeds") if "embeds" in own else own))
    return trainer, samples


def step(settings: dict[str, Any], rounds: MicroBatches) -> None:
    """Train on tensors that are in memory already, a round being `steps` steps."""
    trainer, samples = load_trainer(settings)
    trainer.transformer.train(settings["recompute"])  # diffusers recomputes in training mode alone
    rounds.ready()
    number = 0
    while True:
        number += 1
        trainer.step([samples[number % len(samples)]])
        if number % settings["steps"] == 0:
            rounds.done(trained=sum(parameter.numel() for parameter in trainer.trained))


def first(settings: dict[str, Any]) -> None:
    """Make one step: a whole process."""
    trainer, samples = load_trainer(settings)
    trainer.step([samples[0]])


if __name__ == "__main__":
    if sys.argv[1] == "first":
        first(json.loads(sys.argv[2]))
    else:
        main({"step": step})
