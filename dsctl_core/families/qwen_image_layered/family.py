"""Declare Qwen-Image-Layered: presets with their weights, and the sizes to which pictures are brought."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dsctl_core.families.qwen_image import family as qwen_image
from dsctl_core.families.qwen_image_edit.family import fitted_size
from dsctl_core.family import DiffSynthTable, Family, ModelParts, Preset, PromptLimit, Reader, Schedule

PIPELINE = "QwenImageLayeredPipeline"

# The model card of Qwen/Qwen-Image-Layered: an area of 640 x 640 pixels (1024 x 1024 is possible), 50 steps, true CFG
# 4.0, four layers.
RESOLUTION = 640
DEFAULTS = {
    "height": RESOLUTION,
    "width": RESOLUTION,
    "num_inference_steps": 50,
    "cfg_scale": 4.0,
    "layers": 4,
    "max_pixels": RESOLUTION * RESOLUTION,
}
# The example of DiffSynth-Studio/Qwen-Image-Layered-Control: no layers beside the one picture that the prompt names.
CONTROL_DEFAULTS = {
    **DEFAULTS,
    "height": 1024,
    "width": 1024,
    "num_inference_steps": 30,
    "layers": 0,
    "max_pixels": 1024 * 1024,
}


def shift_of(image_tokens: int, steps: int) -> float:
    """Return the shift of the noise levels: 2.5 at 640 x 640 pixels, 4 at 1024 x 1024.

    diffusers, pipelines/qwenimage/pipeline_qwenimage_layered.py: mu, which is the shift itself because the published
    scheduler_config.json has `time_shift_type: linear`. It is 1 for 256 x 256 pixels, which are 256 tokens.
    """
    return math.sqrt(image_tokens / 256)


def decomposed_size(parts: ModelParts, references: Sequence[tuple[int, int]], pixels: int) -> tuple[int, int]:
    """Return (width, height) of the layers: about `pixels` pixels in the aspect ratio of the picture."""
    return fitted_size(*references[-1], pixels)


# An embedding of a condition, 0 for every sample, is added to that of the timestep; layers have positions of their own.
NETWORK = {"use_additional_t_cond": True, "use_layer3d_rope": True}
RGBA = {"input_channels": 4}


def with_layers(sizes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the sizes of a Qwen-Image with what differs in Qwen-Image-Layered."""
    return {**sizes, "dit": {**sizes["dit"], **NETWORK}, "vae": {**sizes["vae"], **RGBA}}


FAMILY = Family(
    name="qwen-image-layered",
    title="Qwen-Image-Layered",
    pipeline="dsctl_core.families.qwen_image_layered.pipeline:QwenImageLayeredPipeline",
    pipeline_classes=(PIPELINE,),
    components=(qwen_image.DIT, qwen_image.VAE, qwen_image.TEXT_ENCODER),
    readers=(
        Reader("tokenizer", "tokenizer", "tokenizer/"),
        # For captions. Only the image processor of it: the whole needs torchvision, for videos.
        Reader("processor", "processor", "processor/", kind="image_processor"),
    ),
    presets=(
        Preset(
            name="qwen-image-layered",
            summary="Qwen-Image-Layered, 20 B: decomposes a picture into transparent layers",
            model_id="Qwen/Qwen-Image-Layered",
            license="Apache-2.0",
            files=qwen_image.FILES,
            defaults=DEFAULTS,
        ),
        Preset(
            name="qwen-image-layered-control",
            summary="Qwen-Image-Layered-Control, 20 B: cuts out of a picture what a prompt names",
            model_id="DiffSynth-Studio/Qwen-Image-Layered-Control",
            license="Apache-2.0",
            files=qwen_image.FILES,
            from_repositories=dict.fromkeys(
                ("vae", "text_encoder", "tokenizer", "processor"), "Qwen/Qwen-Image-Layered"
            ),
            defaults=CONTROL_DEFAULTS,
        ),
    ),
    lora_targets=qwen_image.FAMILY.lora_targets,
    division_factor=qwen_image.FAMILY.division_factor,
    schedule=Schedule(
        sampling_mu=shift_of, linear_shift=True, training_mu=math.log(shift_of((RESOLUTION // 16) ** 2, 1))
    ),
    defaults=DEFAULTS,
    extra_inputs=("layers", "edit_image"),
    optional_inputs=("layers", "edit_image"),
    list_inputs=("layers",),
    aligned_inputs=("image", "layers", "edit_image"),
    decomposes=True,
    published=with_layers(qwen_image.PUBLISHED),
    encoders={None: {"text_encoder": qwen_image.ENCODER}},
    # The network has an embedding of two conditions more than Qwen-Image's, the VAE a fourth channel at both ends.
    parameters={
        None: {
            **qwen_image.PARAMETERS,
            "dit": qwen_image.PARAMETERS["dit"] + 2 * 3072,
            "vae": qwen_image.PARAMETERS["vae"] + 2 * 27 * 96 + 1,
        }
    },
    masked_in=1,
    for_compiler=qwen_image.FAMILY.for_compiler,
    tiny=with_layers(qwen_image.TINY),
    captioner=qwen_image.CAPTIONER,
    cache_bytes=qwen_image.cache_bytes,
    prompt_limit=PromptLimit(qwen_image.MAX_TOKENS, qwen_image.count_tokens),
    attention_blocks=qwen_image.FAMILY.attention_blocks,
    # DiffSynth-Studio trains it with the levels of Qwen-Image.
    diffsynth_table=DiffSynthTable(mu=0.8, terminal=0.02),
    same_layers_as=("qwen-image", "qwen-image-edit"),
    edited_size=decomposed_size,
)
