"""A tiny random Qwen-Image-Layered, loaded by this project and by diffusers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.families.qwen_image_layered.pipeline import QwenImageLayeredPipeline
from tests.dsctl_core.families.qwen_image_edit.conftest import Processor
from tests.tiny_models import write_tiny_qwen_image_layered

PIXELS = 64 * 64  # the area at which diffusers decomposes here, instead of 640 x 640
SAID = 20  # tokens of a caption here, instead of 512: the random model never ends by itself


@dataclass(frozen=True)
class Pair:
    """One model on disk, as `ours` and as diffusers' `official` pipeline."""

    folder: Path
    ours: QwenImageLayeredPipeline
    official: Any


class Reader(Processor):
    """Qwen2VLProcessor for one text with one image, which also tells image tokens from text, and decodes."""

    def __call__(self, text: Any, images: Any, padding: bool, return_tensors: str) -> Any:
        read = super().__call__([text], [images], padding, return_tensors)
        image = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        read["mm_token_type_ids"] = (read["input_ids"] == image).int()
        return read

    def batch_decode(self, *args: Any, **options: Any) -> list[str]:
        return self.tokenizer.batch_decode(*args, **options)


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    import diffusers
    from transformers import AutoImageProcessor, AutoTokenizer

    folder = write_tiny_qwen_image_layered(tmp_path_factory.mktemp("tiny-layered") / "model")
    ours = QwenImageLayeredPipeline.from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(path=folder)]
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    official: Any = diffusers.QwenImageLayeredPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        vae=diffusers.AutoencoderKLQwenImage.from_pretrained(folder / "vae"),
        text_encoder=ours.text_encoder,
        tokenizer=tokenizer,
        processor=None,
        transformer=diffusers.QwenImageTransformer2DModel.from_pretrained(folder / "transformer"),
    )
    official.vl_processor = Reader(AutoImageProcessor.from_pretrained(folder / "processor", backend="pil"), tokenizer)
    official.set_progress_bar_config(disable=True)
    return Pair(folder, ours, official)


@pytest.fixture
def pair(loaded: Pair, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Both, in their first state, at the area of the tiny model."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_layered

    sized = pipeline_qwenimage_layered.calculate_dimensions
    monkeypatch.setattr(pipeline_qwenimage_layered, "calculate_dimensions", lambda area, ratio: sized(PIXELS, ratio))
    monkeypatch.setattr(loaded.ours, "defaults", {**loaded.ours.defaults, "height": 64, "width": 64})
    encoder, generate = loaded.official.text_encoder, loaded.official.text_encoder.generate

    def short(max_new_tokens: int, **inputs: Any) -> Any:
        assert max_new_tokens == 512
        return generate(max_new_tokens=SAID, **inputs)

    monkeypatch.setattr(encoder, "generate", short)  # that of both
    loaded.ours.scheduler.set_timesteps()
    return loaded


def layer(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGBA picture that is not the same everywhere, transparent in some places and opaque in others."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 4), dtype=np.uint8)
    coarse[0, :, 3], coarse[3, :, 3] = 0, 255
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def rgba(picture: Image.Image) -> torch.Tensor:
    """(1, 4, 1, H, W) in [-1, 1]."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32)).permute(2, 0, 1)[None, :, None] / 127.5 - 1
