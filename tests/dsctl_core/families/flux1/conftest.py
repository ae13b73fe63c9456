"""Tiny random FLUX.1 models of all kinds, loaded by this project and by diffusers, once for each test process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.families.flux1.pipeline import Flux1Pipeline
from dsctl_core.media.autoencoder_kl import decode
from dsctl_core.pipeline import no_progress_bar
from tests.tiny_models import FLUX1_SIZES, write_tiny_flux1

KINDS = ("dev", "schnell", "kontext", "fill")
PROMPTS = ["a red fox", "a small yellow star in the top left corner on a black background"]
HEIGHT, WIDTH = 48, 80


@dataclass
class Pair:
    """One model, loaded by both: `ours`, and the official pipeline, diffusers'."""

    kind: str
    folder: Path
    ours: Flux1Pipeline
    official: Any

    def our_images(self, prompts: list[str], cfg_scale: float, **shared: Any) -> Tensor:
        """(B, 3, H, W) in [0, 1], before rounding to pixels; seeds 3, 4, ..."""
        given = {"height": HEIGHT, "width": WIDTH, "embedded_guidance": self.ours.guidance(None)}
        with torch.no_grad():
            latents = self.ours.generate(
                prompt=prompts,
                negative_prompt="blue",
                num_inference_steps=2,
                denoising_strength=1.0,
                progress_bar_cmd=no_progress_bar,
                shared={"cfg_scale": cfg_scale, "seed": [3 + n for n in range(len(prompts))], **given, **shared},
            )
            return decode(self.ours.vae, latents, tiled=False, tile_size=512, tile_stride=384) * 0.5 + 0.5

    def official_images(self, prompts: list[str], cfg_scale: float, **more: Any) -> Tensor:
        """The same of diffusers."""
        guided = {} if cfg_scale == 1 else {"true_cfg_scale": cfg_scale, "negative_prompt": ["blue"] * len(prompts)}
        given = {"height": HEIGHT, "width": WIDTH, "guidance_scale": self.ours.guidance(None) or 0.0}
        return self.official(
            prompt=list(prompts),
            num_inference_steps=2,
            max_sequence_length=256 if self.kind == "schnell" else 512,
            generator=[torch.Generator().manual_seed(3 + n) for n in range(len(prompts))],
            output_type="pt",
            **{**given, **guided, **more},
        ).images


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    from diffusers import DiffusionPipeline

    found = {}
    for kind in KINDS:
        folder = write_tiny_flux1(tmp_path_factory.mktemp(f"tiny-flux1-{kind}"), kind=kind)
        official = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
        official.set_progress_bar_config(disable=True)
        found[kind] = Pair(kind, folder, fresh(folder), official)
    return found


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    """Each model in turn, its scheduler in its first state."""
    pairs[request.param].ours.scheduler.set_timesteps()
    return pairs[request.param]


@pytest.fixture
def dev(pairs: dict[str, Pair]) -> Pair:
    pairs["dev"].ours.scheduler.set_timesteps()
    return pairs["dev"]


@pytest.fixture
def kontext(pairs: dict[str, Pair], monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Kontext, whose references diffusers brings to the same small sizes as ours."""
    from diffusers.pipelines.flux import pipeline_flux_kontext

    monkeypatch.setattr(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", FLUX1_SIZES)
    pairs["kontext"].ours.scheduler.set_timesteps()
    return pairs["kontext"]


@pytest.fixture
def fill(pairs: dict[str, Pair], monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Fill, whose VAE diffusers asks for the mean, as ours is."""
    from diffusers.pipelines.flux import pipeline_flux_fill

    monkeypatch.setattr(pipeline_flux_fill, "retrieve_latents", lambda output, **_: output.latent_dist.mode())
    pairs["fill"].ours.scheduler.set_timesteps()
    return pairs["fill"]


def fresh(folder: Path, only: list[str] | None = None) -> Flux1Pipeline:
    configs = [ModelConfig(path=folder)]
    return Flux1Pipeline.from_pretrained(torch_dtype=torch.float32, device="cpu", model_configs=configs, only=only)


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def noisy(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture of `size` (width, height) with something in it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def mask_of(size: tuple[int, int], seed: int = 1) -> Image.Image:
    """A mask of `size` (width, height), grey at its edges, which lie inside of patches."""
    return noisy(size, seed).convert("L").point(lambda level: min(max(4 * level - 300, 0), 255))


def write_rows(folder: Path, *rows: dict[str, Any]) -> Path:
    """Write a dataset of rows whose pictures are written by the caller."""
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
