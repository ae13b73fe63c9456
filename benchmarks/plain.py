"""The other side: the same work written out in plain diffusers, peft and torch. Imports nothing of dsctl."""

from __future__ import annotations

import base64
import csv
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImagePipeline
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.worker import MicroBatches, main

TARGETS = ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"]
TRAINING_MU = 0.8  # the shift of the training schedule


class Pictures(Dataset):
    """The rows of a metadata.csv with their pictures, which have the size that is trained on already."""

    def __init__(self, folder: Path, repeat: int) -> None:
        with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
            self.rows = list(csv.DictReader(file))
        self.folder, self.repeat = folder, repeat

    def __len__(self) -> int:
        return len(self.rows) * self.repeat

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        row = self.rows[index % len(self.rows)]
        image = Image.open(self.folder / row["image"]).convert("RGB")
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)
        return pixels.permute(2, 0, 1).float() / 127.5 - 1, row["prompt"]


def load(settings: dict[str, Any]) -> Any:
    pipe = QwenImagePipeline.from_pretrained(settings["model"], torch_dtype=torch.float32).to(settings["device"])
    pipe.set_progress_bar_config(disable=True)
    for model in (pipe.vae, pipe.text_encoder, pipe.transformer):
        model.requires_grad_(False).eval()
    return pipe


def train(settings: dict[str, Any], rounds: MicroBatches) -> None:
    """Train a LoRA, a round being `steps` steps of it."""
    from peft import LoraConfig

    device = settings["device"]
    pipe = load(settings)
    pipe.transformer.add_adapter(
        LoraConfig(r=settings["rank"], lora_alpha=settings["rank"], target_modules=TARGETS, lora_dropout=0.0)
    )
    trained = [parameter for parameter in pipe.transformer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings["learning_rate"], weight_decay=0.01)
    mean = torch.tensor(pipe.vae.config.latents_mean, device=device).view(1, -1, 1, 1, 1)
    std = torch.tensor(pipe.vae.config.latents_std, device=device).view(1, -1, 1, 1, 1)
    grid = (torch.arange(1000, 0, -1) - 0.5) / 1000
    sigmas = math.exp(TRAINING_MU) / (math.exp(TRAINING_MU) + (1 / grid - 1))
    weights = torch.expm1(2 * sigmas * (1 - sigmas))
    weights = weights / weights.mean()
    loader = DataLoader(
        Pictures(Path(settings["dataset"]), 1000), batch_size=settings["batch_size"], shuffle=True, drop_last=True
    )
    rounds.ready()
    for step, (images, prompts) in enumerate(loader, 1):
        with torch.no_grad():
            latents = pipe.vae.encode(images.to(device).unsqueeze(2)).latent_dist.mode()
            latents = ((latents - mean) / std).squeeze(2)
            embeds, mask = pipe.encode_prompt(list(prompts), device=device)
        batch, channels, height, width = latents.shape
        noise = torch.randn(latents.shape).to(device)
        pick = torch.randint(len(sigmas), (batch,))
        sigma, weight = sigmas[pick].to(device), weights[pick].to(device)
        level = sigma.view(-1, 1, 1, 1)
        noisy = pipe._pack_latents((1 - level) * latents + level * noise, batch, channels, height, width)
        target = pipe._pack_latents(noise - latents, batch, channels, height, width)
        velocity = pipe.transformer(
            hidden_states=noisy,
            timestep=sigma,
            encoder_hidden_states=embeds,
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, height // 2, width // 2)]] * batch,
            return_dict=False,
        )[0]
        loss = ((velocity - target).square().flatten(1).mean(dim=1) * weight).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # a training script shows its loss
        if step % settings["steps"] == 0:
            rounds.done(trained=sum(parameter.numel() for parameter in trained))


def infer(settings: dict[str, Any], rounds: MicroBatches) -> None:
    """Make pictures, one a round."""
    pipe = load(settings)

    def picture(number: int) -> dict[str, Any]:
        image = pipe(
            prompt=settings["prompt"],
            negative_prompt="",
            true_cfg_scale=settings["cfg_scale"],
            height=settings["height"],
            width=settings["width"],
            num_inference_steps=settings["inference_steps"],
            generator=torch.Generator("cpu").manual_seed(number),
        ).images[0]
        return {"picture": base64.b64encode(image.tobytes()).decode()}

    rounds.repeat(picture)


if __name__ == "__main__":
    main({"train": train, "infer": infer})
