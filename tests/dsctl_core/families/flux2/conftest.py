"""Tiny random FLUX.2 models, klein and dev, loaded by this project and by diffusers, once for each test process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.families.flux2.pipeline import Flux2Pipeline
from tests.tiny_models import write_tiny_flux2, write_tiny_flux2_dev

WRITERS: dict[str, Callable[[Path], Path]] = {"klein": write_tiny_flux2, "dev": write_tiny_flux2_dev}
LAYERS = (1, 2, 3)  # of the four that the tiny text encoders have, as 9, 18 and 27 of 36


@dataclass
class Pair:
    """One model, loaded by both: `ours`, and the official pipeline, diffusers'."""

    name: str
    folder: Path
    ours: Flux2Pipeline
    official: Any

    def embeddings(self, prompts: str | list[str]) -> torch.Tensor:
        """What diffusers makes of `prompts`."""
        with torch.no_grad():
            return self.official.encode_prompt(prompts, text_encoder_out_layers=LAYERS)[0]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    import diffusers

    official = {"klein": diffusers.Flux2KleinPipeline, "dev": diffusers.Flux2Pipeline}
    found = {}
    for name, write in WRITERS.items():
        folder = write(tmp_path_factory.mktemp(f"tiny-flux2-{name}"))
        ours = Flux2Pipeline.from_pretrained(
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
def klein(pairs: dict[str, Pair]) -> Pair:
    pairs["klein"].ours.scheduler.set_timesteps()
    return pairs["klein"]


@pytest.fixture
def dev(pairs: dict[str, Pair]) -> Pair:
    pairs["dev"].ours.scheduler.set_timesteps()
    return pairs["dev"]
