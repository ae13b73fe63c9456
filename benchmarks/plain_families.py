"""The step of further families in plain diffusers, peft and torch, for train_step.py. Imports nothing of dsctl.

A sample is (latents, the other tensors of the cache by name): both sides train on the same inputs.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from benchmarks.plain_two_stages import Trainer, pack

Tensors = dict[str, torch.Tensor]
WAN_TEXT = 512  # tokens that a prompt is padded to
FLUX_GUIDANCE = 1.0  # the embedded guidance in training


def joined(samples: list[Tensors], name: str, dtype: torch.dtype) -> torch.Tensor:
    """Return the tensors of all samples as one batch."""
    return torch.cat([sample[name] for sample in samples]).to(dtype)


def image_ids(height: int, width: int, number: int = 0) -> torch.Tensor:
    """Return the positions (height * width, 3) of the tokens of an image: its number, row and column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.full_like(rows, number), rows, columns], dim=-1).reshape(-1, 3).float()


class Flux1Trainer(Trainer):
    """A LoRA on FLUX.1's transformer."""

    targets = (
        r".*\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out|ff\.net\.0\.proj|ff\.net\.2"
        r"|ff_context\.net\.0\.proj|ff_context\.net\.2|proj_mlp)|single_transformer_blocks\.\d+\.proj_out"
    )
    mu = 1.15

    def errors(self, latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, embeds: list[Tensors]) -> Any:
        """Return what the velocity is off by."""
        dtype, (batch, _, height, width) = self.transformer.dtype, latents.shape
        level = sigma.view(-1, 1, 1, 1)
        text = joined(embeds, "prompt_embeds", dtype)
        velocity = self.transformer(
            hidden_states=pack((1 - level) * latents + level * noise).to(dtype),
            timestep=sigma,
            guidance=torch.full((batch,), FLUX_GUIDANCE),
            pooled_projections=joined(embeds, "pooled_embeds", dtype),
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3),
            img_ids=image_ids(height // 2, width // 2),
            return_dict=False,
        )[0]
        return velocity - pack(noise - latents)


class EditTrainer(Trainer):
    """A LoRA on the transformer of Qwen-Image-Edit, with one square reference image."""

    def errors(self, latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, embeds: list[Tensors]) -> Any:
        """Return what the velocity of the target's tokens is off by."""
        dtype, (batch, _, height, width) = self.transformer.dtype, latents.shape
        level = sigma.view(-1, 1, 1, 1)
        noisy = pack((1 - level) * latents + level * noise).to(dtype)
        references = joined(embeds, "edit_latents", dtype)
        side = math.isqrt(references.shape[1])
        velocity = self.transformer(
            hidden_states=torch.cat([noisy, references], dim=1),
            timestep=sigma,
            encoder_hidden_states=joined(embeds, "prompt_embeds", dtype),
            encoder_hidden_states_mask=None,
            img_shapes=[[(1, height // 2, width // 2), (1, side, side)]] * batch,
            return_dict=False,
        )[0]
        return velocity[:, : noisy.shape[1]] - pack(noise - latents)


class WanTrainer(Trainer):
    """A LoRA on Wan's transformer, from text to clips."""

    targets = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
    mu = math.log(5)

    def errors(self, latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, embeds: list[Tensors]) -> Any:
        """Return what the velocity is off by; the network takes 1000 times the noise level."""
        dtype = self.transformer.dtype
        level = sigma.view(-1, 1, 1, 1, 1)
        padded = [each["prompt_embeds"][0] for each in embeds]
        text = torch.stack([torch.nn.functional.pad(each, (0, 0, 0, WAN_TEXT - len(each))) for each in padded])
        velocity = self.transformer(
            hidden_states=((1 - level) * latents + level * noise).to(dtype),
            timestep=1000 * sigma,
            encoder_hidden_states=text.to(dtype),
            return_dict=False,
        )[0]
        return velocity - (noise - latents)


# family -> (the transformer's class in diffusers, what trains it)
TRAINERS: dict[str, tuple[str, type[Trainer]]] = {
    "flux1": ("FluxTransformer2DModel", Flux1Trainer),
    "qwen-image-edit": ("QwenImageTransformer2DModel", EditTrainer),
    "wan": ("WanTransformer3DModel", WanTrainer),
}
