"""The tiny denoiser, with random weights."""

import pytest
import torch

from dsctl_core.checkpoint.build import component_class
from dsctl_core.families import load_family
from tests.tiny_models import randomize


@pytest.fixture
def load_tiny_dit():
    def load():
        family = load_family("qwen-image")
        model = component_class(family.component("dit"))(**family.tiny["dit"])
        return randomize(model, torch.Generator().manual_seed(0)).requires_grad_(False)

    return load
