"""Dawn, a family that exists for tests alone, in a folder that no file of dsctl knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.families import identify_folder, pipeline_class
from tests.families_fixture.tiny import added_families, write_dawn


@pytest.fixture(scope="module")
def dawn_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny Dawn with two denoisers and an image encoder; its family is known as long as the module lasts."""
    with added_families():
        yield write_dawn(tmp_path_factory.mktemp("dawn") / "model")


@pytest.fixture
def dawn(dawn_folder: Path) -> Any:
    """The pipeline of the tiny Dawn."""
    return load_dawn(dawn_folder)


def load_dawn(folder: Path, **settings: Any) -> Any:
    family = identify_folder(folder)
    return pipeline_class(family).from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(folder)], **settings
    )
