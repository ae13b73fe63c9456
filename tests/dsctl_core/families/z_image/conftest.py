"""Tiny random Z-Image models, base and Omni, loaded by this project and by diffusers, once for each test process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.families.z_image.pipeline import ZImagePipeline
from dsctl_core.media.autoencoder_kl import decode
from dsctl_core.pipeline import no_progress_bar
from tests.tiny_models import write_tiny_z_image, write_tiny_z_image_omni

WRITERS: dict[str, Callable[[Path], Path]] = {"base": write_tiny_z_image, "omni": write_tiny_z_image_omni}
PROMPTS = ["a red fox", "a small yellow star in the top left corner on a black background, with many more words in it"]


@dataclass
class Pair:
    """One model, loaded by both: `ours`, and the official pipeline, diffusers'."""

    name: str
    folder: Path
    ours: ZImagePipeline
    official: Any

    def embeddings(self, prompts: list[str]) -> list[Any]:
        """What diffusers makes of `prompts`: (T, D) each, for Omni in a list of one."""
        with torch.no_grad():
            return self.official.encode_prompt(list(prompts), do_classifier_free_guidance=False)[0]

    def our_images(self, prompts: list[str], steps: int, cfg_scale: float, **shared: Any) -> Tensor:
        """(B, 3, H, W) in [0, 1], before rounding to pixels; seeds 3, 4, ..."""
        seeds = [3 + index for index in range(len(prompts))]
        with torch.no_grad():
            latents = self.ours.generate(
                prompt=prompts,
                negative_prompt="",
                num_inference_steps=steps,
                denoising_strength=1.0,
                progress_bar_cmd=no_progress_bar,
                shared={**shared, "cfg_scale": cfg_scale, "seed": seeds},
            )
            return decode(self.ours.vae, latents, tiled=False, tile_size=512, tile_stride=384) * 0.5 + 0.5

    def official_images(self, prompts: list[str], steps: int, cfg_scale: float, **more: Any) -> Tensor:
        """The same of diffusers, whose guidance_scale is `cfg_scale` - 1."""
        return self.official(
            prompt=list(prompts),
            guidance_scale=cfg_scale - 1,
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(3 + index) for index in range(len(prompts))],
            output_type="pt",
            **more,
        ).images


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    import diffusers

    official = {"base": diffusers.ZImagePipeline, "omni": diffusers.ZImageOmniPipeline}
    found = {}
    for name, write in WRITERS.items():
        folder = write(tmp_path_factory.mktemp(f"tiny-z-image-{name}"))
        ours = ZImagePipeline.from_pretrained(
            torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(path=folder)]
        )
        theirs = official[name].from_pretrained(folder, dtype=torch.float32)
        theirs.set_progress_bar_config(disable=True)
        found[name] = Pair(name, folder, ours, theirs)
    return found


@pytest.fixture(params=list(WRITERS))
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    """Each model in turn, its scheduler in its first state."""
    pairs[request.param].ours.scheduler.set_timesteps()
    return pairs[request.param]


@pytest.fixture
def base(pairs: dict[str, Pair]) -> Pair:
    pairs["base"].ours.scheduler.set_timesteps()
    return pairs["base"]


@pytest.fixture
def omni(pairs: dict[str, Pair]) -> Pair:
    pairs["omni"].ours.scheduler.set_timesteps()
    return pairs["omni"]


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def noisy(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture of `size` (width, height) with something in it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def write_rows(folder: Path, *rows: dict[str, Any]) -> Path:
    """Write a dataset of rows whose pictures are written by the caller."""
    import json

    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
