"""Dawn: clips by two denoisers with a boundary, an optional image encoder with its processor, and a loss mask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dsctl_core.family import Component, Denoiser, Family, Preset, Reader, Schedule

NETWORKS = "dsctl_core.families.dawn.networks"
FILES = {name: f"{name}/*.safetensors" for name in ("dit", "vae", "text_encoder")}


def index_denoisers(index: Mapping[str, Any]) -> tuple[Denoiser, ...]:
    """Return the two denoisers of weights with a boundary, the high levels first, or the one of others."""
    boundary = index.get("boundary_ratio")
    if boundary is None:
        return (Denoiser("dit"),)
    return (Denoiser("dit", low=boundary), Denoiser("dit_2", high=boundary))


def index_division_factor(index: Mapping[str, Any]) -> int:
    """Return 32 for weights that say so, else 16."""
    return 32 if index.get("coarse") else 16


def cache_bytes(dit: Mapping[str, Any], width: int, height: int, frames: int, characters: int) -> tuple[int, int]:
    """Return about the bytes of a clip's latents and of a prompt's embeddings."""
    return 2 * 16 * ((frames - 1) // 4 + 1) * (width // 8) * (height // 8), 2 * characters * 32


FAMILY = Family(
    name="dawn",
    title="Dawn",
    pipeline="dsctl_core.families.dawn.pipeline:DawnPipeline",
    pipeline_classes=("DawnPipeline",),
    components=(
        Component("dit", "transformer", NETWORKS, "DawnTransformer"),
        Component("dit_2", "transformer_2", NETWORKS, "DawnTransformer", optional=True),
        Component("vae", "vae", "diffusers", "AutoencoderKLWan"),
        Component("text_encoder", "text_encoder", "transformers", "T5EncoderModel"),
        Component("image_encoder", "image_encoder", "transformers", "CLIPVisionModel", optional=True),
    ),
    readers=(
        Reader("tokenizer", "tokenizer", "tokenizer/"),
        Reader("processor", "processor", "processor/", "processor", optional=True, components=("image_encoder",)),
    ),
    presets=(
        Preset("dawn-small", "One denoiser", "Dawn/Small", files=FILES),
        Preset(
            "dawn-large",
            "Two denoisers",
            "Dawn/Large",
            files={
                **FILES,
                "dit_2": "dit_2/*.safetensors",
                "image_encoder": "image_encoder/*",
                "processor": "processor/",
            },
            from_repositories={"processor": "Dawn/Readers"},
            index={"boundary_ratio": 0.875, "coarse": True},
        ),
    ),
    lora_targets=("to_q", "to_v"),
    division_factor=16,
    schedule=Schedule(base_shift=math.log(5), max_shift=math.log(5), training_mu=math.log(5)),
    defaults={"height": 32, "width": 32, "num_frames": 5, "fps": 8, "num_inference_steps": 4, "cfg_scale": 2.0},
    extra_inputs=("first_image",),
    published={"dit": {"width": 32, "layers": 2}},
    tiny={"dit": {"width": 32, "layers": 2}},
    time_division=(4, 1),
    cache_bytes=cache_bytes,
    index_denoisers=index_denoisers,
    index_division_factor=index_division_factor,
)
