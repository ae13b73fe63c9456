"""Tiny random models on disk, in diffusers layout, made by the official classes: for tests of every family."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dsctl_core.families import find_preset, load_family


def write_tiny_model(family_name: str, folder: Path, seed: int = 0) -> Path:
    """Write a tiny random model of the family called `family_name` to `folder`; the same one for the same `seed`."""
    BUILDERS[family_name](folder, seed)
    return folder


def write_tiny_qwen_image(folder: Path, seed: int = 0) -> Path:
    """Write a tiny random Qwen-Image to `folder`: official classes, the sizes of `family.tiny`, a real tokenizer."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    family = load_family("qwen-image")
    generator = torch.Generator().manual_seed(seed)
    schedule = family.schedule
    tokenizer = embedded_tokenizer()
    pipe: Any = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=schedule.base_shift,
            max_shift=schedule.max_shift,
            base_image_seq_len=schedule.base_image_seq_len,
            max_image_seq_len=schedule.max_image_seq_len,
            shift_terminal=schedule.shift_terminal,
        ),
        vae=randomize(AutoencoderKLQwenImage(**family.tiny["vae"]), generator),
        text_encoder=randomize(
            Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**family.tiny["text_encoder"])), generator
        ),
        tokenizer=AutoTokenizer.from_pretrained(str(tokenizer), local_files_only=True),
        transformer=randomize(QwenImageTransformer2DModel(**family.tiny["dit"]), generator),
    )
    pipe.save_pretrained(folder)
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(tokenizer, folder / "tokenizer")
    return folder


def embedded_tokenizer() -> Path:
    """Return the folder of the embedded model's tokenizer, the only real one that there is without a download."""
    path = find_preset("tiny")[1].local_path()
    assert path is not None
    return path / "tokenizer"


def randomize(model: Any, generator: torch.Generator) -> Any:
    """Give every parameter a random value of a sensible size, so that no layer is an identity and none is silent."""
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                values *= 1 / math.sqrt(parameter[0].numel())
            elif name.endswith("bias"):
                values *= 0.1
            else:
                values = 1 + 0.1 * values  # the gain of a norm
            parameter.copy_(values.view(parameter.shape))
    return model.eval()


BUILDERS: dict[str, Callable[[Path, int], Path]] = {"qwen-image": write_tiny_qwen_image}
