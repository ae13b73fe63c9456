"""Declare Qwen-Image-Edit: presets with their weights, and the sizes to which its reference images are brought."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dsctl_core.families.qwen_image import family as qwen_image
from dsctl_core.families.qwen_image.controlnets import BLOCKWISE
from dsctl_core.family import Family, ModelParts, Preset, Reader

# The first version takes one reference image. The later ones (2509 and 2511) take several, and are called "plus".
PLUS, ORIGINAL = "QwenImageEditPlusPipeline", "QwenImageEditPipeline"
CLASS, PIXELS, SEEN = "_class_name", "reference_pixels", "prompt_pixels"  # entries of model_index.json

# diffusers, pipelines/qwenimage/pipeline_qwenimage_edit_plus.py: VAE_IMAGE_SIZE and CONDITION_IMAGE_SIZE. The first
# version shows the text encoder the image that the VAE gets.
REFERENCE_PIXELS = 1024 * 1024
PROMPT_PIXELS = 384 * 384
TINY_PIXELS = 96 * 96  # for both, of the embedded model
AROUND = 8  # tokens of "Picture 1: " and of the marks of a picture's beginning and end
SIDE = 32  # sides of reference images are multiples of this

# The model card of Qwen-Image-Edit: 50 steps; those of 2509 and 2511: 40. True CFG 4.0 for all three.
DEFAULTS = {"height": 1024, "width": 1024, "num_inference_steps": 50, "cfg_scale": 4.0}
PLUS_DEFAULTS = {**DEFAULTS, "num_inference_steps": 40}


def fitted_size(width: int, height: int, pixels: int) -> tuple[int, int]:
    """Return (width, height) of about `pixels` pixels with the aspect ratio of `width` x `height`."""
    wide = math.sqrt(pixels * (width / height))
    tall = wide / (width / height)
    return max(round(wide / SIDE), 1) * SIDE, max(round(tall / SIDE), 1) * SIDE


def is_plus(parts: ModelParts) -> bool:
    """Return whether a model takes several reference images; single components without a model_index.json count so."""
    return parts.settings.get(CLASS, PLUS) == PLUS


def reference_pixels(parts: ModelParts) -> int:
    """Return the number of pixels to which reference images are brought before the VAE encodes them."""
    return parts.settings.get(PIXELS, REFERENCE_PIXELS)


def prompt_pixels(parts: ModelParts) -> int:
    """Return the number of pixels to which reference images are brought before the text encoder reads them."""
    return parts.settings.get(SEEN, PROMPT_PIXELS) if is_plus(parts) else reference_pixels(parts)


def edited_size(parts: ModelParts, references: Sequence[tuple[int, int]], pixels: int) -> tuple[int, int]:
    """Return (width, height) of the edited image: that of the last reference image, if it has about `pixels`."""
    return fitted_size(*references[-1], pixels)


def index_defaults(index: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of a model folder, from the pipeline class in its model_index.json."""
    return DEFAULTS if index.get(CLASS) == ORIGINAL else PLUS_DEFAULTS


def reference_bytes(parts: ModelParts, dit: Mapping[str, Any], width: int, height: int) -> int:
    """Return the estimated size in bytes, in bfloat16, of what a reference image of (width, height) adds to an entry.

    That is its latents, and its tokens in the prompt embeddings.
    """
    wide, tall = fitted_size(width, height, reference_pixels(parts))
    latents = dit["out_channels"] * (wide // 8) * (tall // 8)
    wide, tall = fitted_size(width, height, prompt_pixels(parts))
    # The vision tower makes one token of 28 x 28 pixels, and words stand around them in the chat.
    seen = round(wide / 28) * round(tall / 28) + AROUND
    return 2 * (latents + seen * dit["joint_attention_dim"])


PUBLISHED = qwen_image.PUBLISHED
# 2511 modulates the tokens of reference images as if they were at sigma 0; the weights have the same shapes.
ZERO_COND = {"dit": {**PUBLISHED["dit"], "zero_cond_t": True}}


FAMILY = Family(
    name="qwen-image-edit",
    title="Qwen-Image-Edit",
    pipeline="dsctl_core.families.qwen_image_edit.pipeline:QwenImageEditPipeline",
    pipeline_classes=(PLUS, ORIGINAL, "QwenImageEditInpaintPipeline"),
    components=(qwen_image.DIT, qwen_image.VAE, qwen_image.TEXT_ENCODER),
    readers=(
        Reader("tokenizer", "tokenizer", "tokenizer/"),
        # Only the image processor of it: the whole needs torchvision, for videos.
        Reader("processor", "processor", "processor/", kind="image_processor"),
    ),
    presets=(
        Preset(
            name="tiny-edit",
            summary="Embedded 7 M model that edits 96x96 pictures: trains and runs on a CPU in seconds",
            folder="tiny-edit",
            shared={"vae": "tiny/vae", "tokenizer": "tiny/tokenizer"},
            license="Apache-2.0",
            defaults=qwen_image.TINY_DEFAULTS,
            index={CLASS: PLUS, PIXELS: TINY_PIXELS, SEEN: TINY_PIXELS},
        ),
        Preset(
            name="qwen-image-edit",
            summary="Qwen-Image-Edit, 20 B editing with one reference picture",
            model_id="Qwen/Qwen-Image-Edit",
            license="Apache-2.0",
            files=qwen_image.FILES,
            defaults=DEFAULTS,
            index={CLASS: ORIGINAL},
        ),
        Preset(
            name="qwen-image-edit-2509",
            summary="Qwen-Image-Edit-2509, with several reference pictures",
            model_id="Qwen/Qwen-Image-Edit-2509",
            license="Apache-2.0",
            files=qwen_image.FILES,
            defaults=PLUS_DEFAULTS,
            index={CLASS: PLUS},
        ),
        Preset(
            name="qwen-image-edit-2511",
            summary="Qwen-Image-Edit-2511, the update of 2509",
            model_id="Qwen/Qwen-Image-Edit-2511",
            license="Apache-2.0",
            files=qwen_image.FILES,
            defaults=PLUS_DEFAULTS,
            variant="2511",
            index={CLASS: PLUS},
        ),
    ),
    lora_targets=qwen_image.FAMILY.lora_targets,
    division_factor=qwen_image.FAMILY.division_factor,
    schedule=qwen_image.FAMILY.schedule,
    defaults=PLUS_DEFAULTS,
    extra_inputs=("edit_image",),
    optional_inputs=("edit_image",),
    published=PUBLISHED,
    variants={"2511": ZERO_COND},
    encoders={None: {"text_encoder": qwen_image.ENCODER}},
    parameters={None: qwen_image.PARAMETERS, "2511": {}},
    masked_in=1,
    for_compiler=qwen_image.FAMILY.for_compiler,
    tiny=qwen_image.TINY,
    captioner=qwen_image.CAPTIONER,
    cache_bytes=qwen_image.cache_bytes,
    reference_bytes=reference_bytes,
    attention_blocks=qwen_image.FAMILY.attention_blocks,
    diffsynth_table=qwen_image.FAMILY.diffsynth_table,
    same_layers_as=("qwen-image", "qwen-image-layered"),
    controlnets=BLOCKWISE,
    index_defaults=index_defaults,
    index_settings=(CLASS, PIXELS, SEEN),
    edited_size=edited_size,
)
