"""A tiny random model on disk, and pictures to train it on."""

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from dsctl_core import ModelConfig
from dsctl_core.families import load_family, pipeline_class
from tests.tiny_models import write_tiny_model


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """Let every test choose its own precision; accelerate keeps the first one's for the process."""
    AcceleratorState._reset_state(reset_partial_state=True)


FAMILY = load_family("qwen-image")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return write_tiny_model(FAMILY.name, tmp_path_factory.mktemp("models") / "tiny-random")


@pytest.fixture
def load_pipe(tiny_folder):
    def load(**kwargs):
        settings = {"torch_dtype": torch.float32, "device": "cpu", **kwargs}
        return pipeline_class(FAMILY).from_pretrained(model_configs=[ModelConfig(tiny_folder)], **settings)

    return load


def picture(width=48, height=32, seed=0):
    """A picture of smooth random colours."""
    small = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def dataset_folder(tmp_path):
    """Four pictures of 48x32 with captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = ["image,prompt"]
    for index, caption in enumerate(["a red one", "a blue one", "two green ones on a table", "nothing"]):
        picture(seed=index).save(folder / f"{index}.png")
        lines.append(f"{index}.png,{caption}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder
