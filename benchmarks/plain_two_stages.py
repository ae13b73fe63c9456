"""The two stages written out in plain diffusers, peft and torch. Imports nothing of dsctl.

`python -m benchmarks.plain_two_stages CASE SETTINGS`: "encode" and "cached" take turns with ours, "start" and
"once" are whole processes.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.plain import TARGETS, TRAINING_MU, Pictures, load
from benchmarks.worker import MicroBatches, main


def encoded(pipe: Any, settings: dict[str, Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Encode the dataset one sample at a time."""
    mean = torch.tensor(pipe.vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(pipe.vae.config.latents_std).view(1, -1, 1, 1, 1)
    for pixels, prompt in (Pictures(Path(settings["dataset"]), 1)[n] for n in range(settings["samples"])):
        with torch.no_grad():
            latents = pipe.vae.encode(pixels[None, :, None]).latent_dist.mode()
            sample = ((latents - mean) / std).squeeze(2), pipe.encode_prompt([prompt])[0]
        yield sample  # outside, or the step that follows would have no gradients


def encode(settings: dict[str, Any], rounds: MicroBatches) -> None:
    """Encode the dataset and write it to one file, a round being all of it."""
    pipe = load(settings)

    def once(number: int) -> dict[str, Any]:
        write_encoded(pipe, settings)
        return {}

    rounds.repeat(once)


def write_encoded(pipe: Any, settings: dict[str, Any]) -> None:
    """Encode the dataset into one file."""
    tensors = {}
    for n, (latents, embeds) in enumerate(encoded(pipe, settings)):
        tensors.update({f"{n}.latents": latents.contiguous(), f"{n}.embeds": embeds.contiguous()})
    save_file(tensors, settings["encoded"])


class Trainer:
    """A LoRA on a transformer, trained on latents and embeddings."""

    targets: Sequence[str] | str = TARGETS  # the ends of names, or a pattern of whole names
    mu = TRAINING_MU

    def __init__(self, transformer: Any, settings: dict[str, Any]) -> None:
        from peft import LoraConfig

        self.transformer = transformer
        transformer.requires_grad_(False).eval()
        rank = settings["rank"]
        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, lora_dropout=0.0))
        self.trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=settings["learning_rate"], weight_decay=0.01)
        grid = (torch.arange(1000, 0, -1) - 0.5) / 1000
        self.sigmas = math.exp(self.mu) / (math.exp(self.mu) + (1 / grid - 1))

    def step(self, samples: list[tuple[torch.Tensor, Any]]) -> None:
        """Make one update on a batch."""
        latents = torch.cat([sample[0] for sample in samples])
        noise = torch.randn(latents.shape)
        sigma = self.sigmas[torch.randint(1000, (len(latents),))]
        loss = self.errors(latents, noise, sigma, [embeds for _, embeds in samples]).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()

    def errors(self, latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, embeds: list[Any]) -> Any:
        """Return what the velocity is off by, with the prompts padded and masked as the pipeline does it."""
        longest = max(each.shape[1] for each in embeds)
        padded = torch.cat([torch.nn.functional.pad(e, (0, 0, 0, longest - e.shape[1])) for e in embeds])
        lengths = torch.tensor([each.shape[1] for each in embeds])
        mask = torch.arange(longest) < lengths[:, None] if len(set(lengths.tolist())) > 1 else None
        batch, _, height, width = latents.shape
        level = sigma.view(-1, 1, 1, 1)
        velocity = self.transformer(
            hidden_states=pack((1 - level) * latents + level * noise),
            timestep=sigma,
            encoder_hidden_states=padded,
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, height // 2, width // 2)]] * batch,
            return_dict=False,
        )[0]
        return velocity - pack(noise - latents)


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Turn latents into tokens."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, height // 2 * (width // 2), channels * 4)


def cached(settings: dict[str, Any], rounds: MicroBatches) -> None:
    """Train on tensors that are in memory already, a round being `steps` steps."""
    pipe = load(settings)
    samples, trainer = list(encoded(pipe, settings)), Trainer(pipe.transformer, settings)
    pipe.vae = pipe.text_encoder = None
    rounds.ready()
    step = 0
    while True:
        step += 1
        trainer.step([samples[(step + n) % len(samples)] for n in range(settings["batch_size"])])
        if step % settings["steps"] == 0:
            rounds.done(trained=sum(parameter.numel() for parameter in trainer.trained))


def write(settings: dict[str, Any]) -> None:
    """Encode the dataset and write it to one file: a whole process."""
    write_encoded(load(settings), settings)


def start(settings: dict[str, Any]) -> None:
    """Load the transformer and a file of encoded samples, and make `steps` steps: a whole process."""
    from diffusers import QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel.from_pretrained(settings["model"], subfolder="transformer")
    tensors = load_file(settings["encoded"])
    samples = [(tensors[f"{n}.latents"], tensors[f"{n}.embeds"]) for n in range(settings["samples"])]
    trainer = Trainer(transformer, settings)
    for step in range(settings["steps"]):
        trainer.step([samples[step % len(samples)]])


def once(settings: dict[str, Any]) -> None:
    """Train in one stage, encoding in every step, `repeat` times over the dataset: a whole process."""
    pipe = load(settings)
    trainer = Trainer(pipe.transformer, settings)
    for _ in range(settings["repeat"]):
        for sample in encoded(pipe, settings):
            trainer.step([sample])


if __name__ == "__main__":
    if sys.argv[1] in ("write", "start", "once"):
        {"write": write, "start": start, "once": once}[sys.argv[1]](json.loads(sys.argv[2]))
    else:
        main({"encode": encode, "cached": cached})
