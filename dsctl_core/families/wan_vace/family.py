"""Declare Wan VACE 2.1 and 2.2 Fun: presets with their weights, and the constants that they were published with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dsctl_core.families.wan import family as wan
from dsctl_core.families.wan_vace.original_names import ORIGINAL_NAMES
from dsctl_core.family import DiffSynthTable, Family, OwnPart, PromptLimit

PIPELINE, TRANSFORMER = "WanVACEPipeline", "WanVACETransformer3DModel"
SAME: dict[str, Any] = {"class_name": TRANSFORMER, "original_class": "VaceWanModel", "single_file_renames": {}}
DIT, DIT_2 = replace(wan.DIT, **SAME), replace(wan.DIT_2, **SAME)

VIDEO, MASK, REFERENCES = "vace_video", "vace_video_mask", "vace_reference_image"
# What the transformer follows: latents of the control video without and with what the mask shows, and 8 x 8 pixels of
# the mask for each latent.
CONTEXT_CHANNELS = 2 * 16 + 64
# The modules of the transformer that read the context, and the learning rate of DiffSynth-Studio's training scripts.
PART = OwnPart(("vace_blocks", "vace_patch_embedding"), 5e-5, called="vace")


def with_vace(sizes: Mapping[str, Any], every: int) -> dict[str, Any]:
    """Return the sizes of a Wan transformer with a vace block beside every `every`-th block."""
    return {
        **sizes,
        "vace_layers": list(range(0, sizes["num_layers"], every)),
        "vace_in_channels": CONTEXT_CHANNELS,
    }


# config.json of the original releases: vace_layers 0, 5, ..., 35 of 40 blocks, and 0, 2, ..., 28 of 30.
PUBLISHED = {"dit": with_vace(wan.T2V_14B, 5), "vae": wan.PUBLISHED["vae"]}
VARIANTS = {"1.3b": {"dit": with_vace(wan.VARIANTS["t2v-1.3b"]["dit"], 2)}}
# Counted from the sizes above.
PARAMETERS: dict[str | None, dict[str, int]] = {
    None: {
        **dict.fromkeys(("dit", "dit_2"), 17_337_592_896),
        "vae": wan.PARAMETERS[None]["vae"],
        "text_encoder": wan.PARAMETERS[None]["text_encoder"],
    },
    "1.3b": {"dit": 2_153_972_032},
}
DEFAULTS = wan.T2V_DEFAULTS


def cache_bytes(dit: Mapping[str, Any], width: int, height: int, frames: int, characters: int) -> tuple[int, int]:
    """Return the estimated size in bytes, in bfloat16, of the latents of a clip and of the embeddings of a prompt.

    With the latents is what the transformer follows, for a row without reference images: each of these adds a frame.
    """
    clip, prompt = wan.cache_bytes({**dit, "image_dim": None}, width, height, frames, characters)
    latents = dit["in_channels"]
    mask = dit["vace_in_channels"] - 2 * latents  # in bytes
    return clip // (2 * latents) * (2 * 3 * latents + mask), prompt


# wan/configs and generate.py of https://github.com/Wan-Video/Wan2.1 have a shift of 16 for VACE; the model_index.json
# of the copy of 2.2 Fun has the boundary, and examples/wan2.2_vace_fun of https://github.com/aigc-apps/VideoX-Fun have
# the size, the shift, the steps and the guidance.
PRESETS = (
    wan.published_preset(
        "wan2.1-vace-1.3b",
        "Wan 2.1 VACE, 2.2 B: clips that follow a clip, a mask and pictures",
        "Wan-AI/Wan2.1-VACE-1.3B-diffusers",
        16.0,
        DEFAULTS,
        variant="1.3b",
    ),
    wan.published_preset(
        "wan2.1-vace-14b",
        "Wan 2.1 VACE, 17 B: clips that follow a clip, a mask and pictures",
        "Wan-AI/Wan2.1-VACE-14B-diffusers",
        16.0,
        wan.defaults_of(*wan.LARGE, 50, 5.0),
    ),
    wan.published_preset(
        "wan2.2-vace-fun-a14b",
        "Wan 2.2 VACE Fun, two 17 B denoisers: clips that follow a clip, a mask, pictures",
        "linoyts/Wan2.2-VACE-Fun-14B-diffusers",
        12.0,
        {**DEFAULTS, "cfg_scale": (5.0, 5.0)},
        files=wan.TWO,
        index={"boundary_ratio": 0.875},
        float32=("vae",),
    ),
)

FAMILY = Family(
    name="wan-vace",
    title="Wan VACE",
    pipeline="dsctl_core.families.wan_vace.pipeline:WanVacePipeline",
    pipeline_classes=(PIPELINE,),
    components=(DIT, DIT_2, wan.VAE, wan.TEXT_ENCODER),
    readers=wan.FAMILY.readers[:1],
    presets=PRESETS,
    lora_targets=tuple(f"vace_blocks.*.{name}" for name in wan.FAMILY.lora_targets),
    own_part=PART,
    division_factor=wan.FAMILY.division_factor,
    time_division=wan.FAMILY.time_division,
    schedule=wan.schedule_of(5.0),
    defaults=DEFAULTS,
    extra_inputs=(VIDEO, MASK, REFERENCES),
    optional_inputs=(VIDEO, MASK, REFERENCES),
    list_inputs=(REFERENCES,),
    whole_inputs=(REFERENCES,),
    along_inputs={VIDEO: False, MASK: True},
    companion_inputs={MASK: VIDEO},
    published=PUBLISHED,
    variants=VARIANTS,
    encoders=wan.ENCODERS,
    parameters=PARAMETERS,
    tiny={**wan.TINY, "dit": with_vace({**wan.TINY["dit"], "num_layers": 3}, 2)},
    cache_bytes=cache_bytes,
    prompt_limit=PromptLimit(wan.TEXT_TOKENS, wan.count_tokens),
    original_names=ORIGINAL_NAMES,
    diffsynth_table=DiffSynthTable(mu=math.log(5)),
    attention_blocks=(),
    index_denoisers=wan.index_denoisers,
    same_layers_as=("wan",),
)
