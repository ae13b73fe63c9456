"""A tiny random Qwen-Image on disk, loaded by this project and by diffusers, once for each test process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.families.qwen_image.pipeline import QwenImagePipeline
from tests.tiny_models import write_tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("qwen-image", tmp_path_factory.mktemp("tiny-qwen-image"))


@pytest.fixture(scope="session")
def loaded(tiny_folder: Path) -> QwenImagePipeline:
    return QwenImagePipeline.from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(path=tiny_folder)]
    )


@pytest.fixture
def pipe(loaded: QwenImagePipeline) -> QwenImagePipeline:
    """Ours, back in its first state: for sampling, with all of its components."""
    loaded.scheduler.set_timesteps()
    return loaded


@pytest.fixture(scope="session")
def official(tiny_folder: Path) -> Any:
    """The official pipeline, diffusers', on the same weights."""
    from diffusers import QwenImagePipeline as OfficialPipeline

    pipeline = OfficialPipeline.from_pretrained(tiny_folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
