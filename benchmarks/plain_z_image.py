"""Z-Image's side of train_step.py in plain diffusers, peft and torch. Imports nothing of dsctl.

`python -m benchmarks.plain_z_image SETTINGS` encodes the dataset into one file.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.plain import Pictures
from benchmarks.plain_two_stages import Trainer


class ZImageTrainer(Trainer):
    """A LoRA on Z-Image's transformer, trained on latents and embeddings."""

    targets = ("to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3")
    mu = math.log(6)

    def errors(self, latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, embeds: list[Any]) -> Any:
        """Return what the velocity is off by; the network's output is minus the velocity."""
        level = sigma.view(-1, 1, 1, 1)
        noisy = ((1 - level) * latents + level * noise).to(self.transformer.dtype)
        prompts = [each[0].to(self.transformer.dtype) for each in embeds]
        output = self.transformer(list(noisy.unsqueeze(2)), 1 - sigma, prompts, return_dict=False)[0]
        return torch.stack(output).squeeze(2) - (latents - noise)


def write(settings: dict[str, Any]) -> None:
    """Encode the dataset into one file."""
    from diffusers import ZImagePipeline

    pipe = ZImagePipeline.from_pretrained(settings["model"], torch_dtype=torch.float32)
    pictures, config, tensors = Pictures(Path(settings["dataset"]), 1), pipe.vae.config, {}
    with torch.no_grad():
        for number in range(settings["samples"]):
            pixels, prompt = pictures[number]
            raw = pipe.vae.encode(pixels[None]).latent_dist.mode()
            tensors[f"{number}.latents"] = ((raw - config.shift_factor) * config.scaling_factor).contiguous()
            embeds = pipe.encode_prompt([prompt], do_classifier_free_guidance=False)[0]
            tensors[f"{number}.embeds"] = embeds[0][None].contiguous()
    save_file(tensors, settings["encoded"])


if __name__ == "__main__":
    write(json.loads(sys.argv[1]))
