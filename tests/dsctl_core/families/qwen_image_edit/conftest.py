"""Tiny random models of both kinds of Qwen-Image-Edit, loaded by this project and by diffusers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.families.qwen_image_edit.pipeline import QwenImageEditPipeline
from tests.tiny_models import write_tiny_qwen_image_edit

KINDS = ("QwenImageEditPlusPipeline", "QwenImageEditPipeline")
PIXELS = 64 * 64  # reference_pixels of the tiny models


@dataclass(frozen=True)
class Pair:
    """One model on disk, as `ours` and as diffusers' `official` pipeline."""

    folder: Path
    ours: QwenImageEditPipeline
    official: Any


class Processor:
    """Qwen2VLProcessor for text and images, which transformers itself makes only where torchvision is installed."""

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        self.image_processor, self.tokenizer = image_processor, tokenizer

    def __call__(self, text: list[str], images: Any, padding: bool, return_tensors: str) -> Any:
        """Put as many tokens in the place of each image as the vision tower makes of it."""
        seen = {} if images is None else self.image_processor(images=images, return_tensors=return_tensors)
        counts = iter([] if images is None else (seen["image_grid_thw"].prod(dim=1) // 4).tolist())
        parts = [each.split("<|image_pad|>") for each in text]
        filled = [first + "".join("<|image_pad|>" * next(counts) + part for part in rest) for first, *rest in parts]
        read = self.tokenizer(filled, padding=padding, return_tensors=return_tensors)
        read.update(seen)
        return read


def load_pair(folder: Path) -> Pair:
    import diffusers
    from transformers import AutoImageProcessor, AutoTokenizer

    ours = QwenImageEditPipeline.from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(path=folder)]
    )
    official_class = getattr(diffusers, ours.parts.settings["_class_name"])
    images = AutoImageProcessor.from_pretrained(folder / "processor", backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    official = official_class(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        vae=diffusers.AutoencoderKLQwenImage.from_pretrained(folder / "vae"),
        text_encoder=ours.text_encoder,
        tokenizer=tokenizer,
        processor=None,
        transformer=diffusers.QwenImageTransformer2DModel.from_pretrained(folder / "transformer"),
    )
    official.processor = Processor(images, tokenizer)
    official.set_progress_bar_config(disable=True)
    return Pair(folder, ours, official)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    root = tmp_path_factory.mktemp("tiny-edit")
    return {kind: load_pair(write_tiny_qwen_image_edit(root / kind, 0, kind)) for kind in KINDS}


@pytest.fixture
def positions(pairs: dict[str, Pair]) -> Iterator[None]:
    """Diffusers leaves out the types of the tokens, without which transformers 5 numbers image tokens like text."""

    def add(module: Any, arguments: Any, named: dict[str, Any]) -> Any:
        if named.get("pixel_values") is not None:
            named["mm_token_type_ids"] = (named["input_ids"] == module.config.image_token_id).int()
        return arguments, named

    hooks = [pair.official.text_encoder.register_forward_pre_hook(add, with_kwargs=True) for pair in pairs.values()]
    yield
    for hook in hooks:
        hook.remove()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bring references to the size of the tiny models in diffusers, too, where it is a constant."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus

    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", PIXELS)
    sized = pipeline_qwenimage_edit.calculate_dimensions
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: sized(PIXELS, ratio))


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair], positions: None) -> Pair:
    """Both kinds in turn, back in their first state."""
    chosen = pairs[request.param]
    chosen.ours.scheduler.set_timesteps()
    return chosen


@pytest.fixture
def plus(pairs: dict[str, Pair], positions: None) -> Pair:
    pairs[KINDS[0]].ours.scheduler.set_timesteps()
    return pairs[KINDS[0]]


@pytest.fixture
def original(pairs: dict[str, Pair], positions: None) -> Pair:
    pairs[KINDS[1]].ours.scheduler.set_timesteps()
    return pairs[KINDS[1]]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture that is not the same everywhere."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
