"""A tiny random model, and templates for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.families import load_family, pipeline_class
from dsctl_core.pipeline import BasePipeline
from tests.templates import BRIGHTNESS, write_template
from tests.tiny_models import write_tiny_model

FAMILY = load_family("qwen-image")


@pytest.fixture(autouse=True)
def _nothing_agreed_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(FAMILY.name, tmp_path_factory.mktemp("models") / "tiny-random")


@pytest.fixture(scope="session")
def loaded(model_folder: Path) -> BasePipeline:
    configs = [ModelConfig(path=model_folder)]
    return pipeline_class(FAMILY).from_pretrained(torch_dtype=torch.float32, device="cpu", model_configs=configs)


@pytest.fixture
def pipe(loaded: BasePipeline) -> BasePipeline:
    loaded.scheduler.set_timesteps()
    return loaded


@pytest.fixture
def template(tmp_path: Path) -> Callable[..., Path]:
    """Write a template and return its folder."""

    def write(code: str = BRIGHTNESS, name: str = "template", **replaced: str) -> Path:
        return write_template(tmp_path / name, code, **replaced)

    return write


@pytest.fixture
def picture(pipe: Any) -> Callable[..., Any]:
    """Make a small picture, by templates if they are given."""

    def make(templates: Any = None, **inputs: Any) -> Any:
        settings = {"prompt": "a fox", "height": 32, "width": 48, "num_inference_steps": 2, "cfg_scale": 1.0, "seed": 1}
        call = pipe if templates is None else lambda **given: templates(pipe, **given)
        return call(**{**settings, **inputs})

    return make
