"""Declare Z-Image: components, presets with their weights, and the constants that it was published with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dsctl_core.families.z_image.controlnets import CONTROLNETS
from dsctl_core.families.z_image.original_names import ORIGINAL_NAMES
from dsctl_core.family import (
    AttentionBlocks,
    Component,
    DiffSynthTable,
    Family,
    Preset,
    PromptLimit,
    PublishedConfig,
    Reader,
    Schedule,
)

DIT = Component("dit", "transformer", "diffusers", "ZImageTransformer2DModel")
VAE = Component("vae", "vae", "diffusers", "AutoencoderKL")
# The text encoder is Qwen3-4B; its last layer and its head are not used.
QWEN3 = ("Qwen3ForCausalLM", "Qwen3Model")
TEXT_ENCODER = Component("text_encoder", "text_encoder", "transformers", QWEN3[0], other_classes=QWEN3[1:])
PROCESSOR = Reader("siglip_processor", "siglip_processor", "siglip_processor/", "image_processor", True, ("siglip",))
SIGLIP = Component("siglip", "siglip", "transformers", "Siglip2VisionModel", optional=True)

FILES = {
    "dit": "transformer/diffusion_pytorch_model*.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model*.safetensors",
}
OMNI_FILES = {**FILES, "siglip": "siglip/model.safetensors", "siglip_processor": "siglip_processor/"}
PIPELINE, OMNI = "ZImagePipeline", "ZImageOmniPipeline"
TURBO_REPOSITORY = "Tongyi-MAI/Z-Image-Turbo"

# Settings of the model cards (https://huggingface.co/Tongyi-MAI). Their guidance_scale g is pos + g (pos - neg), which
# is a `cfg_scale` of g + 1 here: 4 and 0 there are 5 and 1 here. Their 9 steps of Turbo were 8 passes of the network,
# at the levels of 8 steps here and in diffusers since 0.37; see README.md.
SIZE = {"height": 1024, "width": 1024}
BASE_DEFAULTS = {**SIZE, "num_inference_steps": 50, "cfg_scale": 5.0}
TURBO_DEFAULTS = {**SIZE, "num_inference_steps": 8, "cfg_scale": 1.0}

TEXT_TOKENS = 512  # length to which prompts are truncated, with the chat around them


# Config of the transformer where it differs from the defaults of its class, and its sizes.
DIT_CONFIG: dict[str, Any] = {
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "cap_feat_dim": 2560,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
}
# The VAE is that of FLUX.1: four levels, 16 channels, no convolutions around the latents.
VAE_CONFIG: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "sample_size": 1024,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
PUBLISHED: dict[str, dict[str, Any]] = {"dit": DIT_CONFIG, "vae": VAE_CONFIG}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {"omni": {"dit": {**DIT_CONFIG, "siglip_feat_dim": 1152}}}

# text_encoder/config.json: that of Qwen3-4B.
ENCODER = PublishedConfig(
    "Qwen3ForCausalLM",
    {
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
)
# Those of Omni are not known: its weights are announced, and its SigLIP too.
PARAMETERS = {"dit": 6_154_908_736, "vae": 83_819_683, "text_encoder": 4_022_468_096}

# The smallest sizes with all kinds of layers; the text encoder uses the tokenizer of the embedded model.
TINY: dict[str, dict[str, Any]] = {
    "dit": {
        "in_channels": 16,
        "dim": 32,
        "n_layers": 2,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 16,
        "axes_dims": [4, 6, 6],
        "axes_lens": [768, 128, 128],
    },
    "vae": {**VAE_CONFIG, "block_out_channels": (4, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4},
    "text_encoder": {
        "vocab_size": 2048,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "bos_token_id": 2040,
        "eos_token_id": 2042,
        "pad_token_id": 2040,
        "tie_word_embeddings": True,
    },
    "siglip": {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
}

CHARACTERS_PER_TOKEN = 4  # approximate value for English
CHAT_TOKENS = 8  # tokens of the chat template around the prompt


def count_tokens(tokenizer: Any, prompts: Sequence[str], index: Mapping[str, Any] | None) -> list[int]:
    """Return the number of tokens of each prompt with its chat; without an index, as other weights than Omni."""
    from dsctl_core.families.z_image.chat import chats

    omni = (index or {}).get(SIGLIP.folder, [None, None]) != [None, None]
    return [len(ids) for ids in tokenizer(chats(tokenizer, list(prompts), omni)).input_ids]


def cache_bytes(dit: Mapping[str, Any], width: int, height: int, frames: int, characters: int) -> tuple[int, int]:
    """Return the estimated size in bytes, in bfloat16, of the latents of an image and of the embeddings of a prompt."""
    latents = dit["in_channels"] * (width // 8) * (height // 8) * frames
    tokens = min(-(-characters // CHARACTERS_PER_TOKEN) + CHAT_TOKENS, TEXT_TOKENS)
    return 2 * latents, 2 * tokens * dit["cap_feat_dim"]


def for_compiler(dit: Any) -> None:
    """Have the attention of `dit` turn queries and keys in real numbers."""
    from dsctl_core.families.z_image.joint_attention import for_compiler as real_rotary

    real_rotary(dit)


FAMILY = Family(
    name="z-image",
    title="Z-Image",
    pipeline="dsctl_core.families.z_image.pipeline:ZImagePipeline",
    pipeline_classes=(PIPELINE, OMNI, "ZImageImg2ImgPipeline", "ZImageInpaintPipeline"),
    components=(DIT, VAE, TEXT_ENCODER, SIGLIP),
    readers=(Reader("tokenizer", "tokenizer", "tokenizer/"), PROCESSOR),
    presets=(
        Preset(
            name="z-image",
            summary="Z-Image, 6 B text-to-image: the one to train",
            model_id="Tongyi-MAI/Z-Image",
            license="Apache-2.0",
            files=FILES,
            defaults=BASE_DEFAULTS,
            first_choice=True,
        ),
        Preset(
            name="z-image-turbo",
            summary="Z-Image-Turbo: text to image in 8 steps (distilled)",
            model_id=TURBO_REPOSITORY,
            license="Apache-2.0",
            files=FILES,
            defaults=TURBO_DEFAULTS,
            schedule=Schedule.constant(3.0),
            base_preset="z-image",
        ),
        Preset(
            name="z-image-omni-base",
            summary="Z-Image-Omni-Base: text to image and editing (announced, not published yet)",
            model_id="Tongyi-MAI/Z-Image-Omni-Base",
            files=OMNI_FILES,
            from_repositories=dict.fromkeys(("vae", "text_encoder", "tokenizer"), TURBO_REPOSITORY),
            defaults=BASE_DEFAULTS,
            variant="omni",
            index={"_class_name": OMNI},
        ),
    ),
    # Every linear layer of attention and feed-forward, in the refiners too.
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3"),
    division_factor=16,  # 8 from the VAE times 2 from the 2x2 patches
    # scheduler/scheduler_config.json of Tongyi-MAI/Z-Image: use_dynamic_shifting false, shift 6.0 (3.0 for Turbo).
    schedule=Schedule.constant(6.0),
    defaults=BASE_DEFAULTS,
    extra_inputs=("edit_image",),
    controlnets=CONTROLNETS,
    published=PUBLISHED,
    encoders={None: {"text_encoder": ENCODER}},
    parameters={None: PARAMETERS},
    variants=VARIANTS,
    tiny=TINY,
    cache_bytes=cache_bytes,
    prompt_limit=PromptLimit(TEXT_TOKENS, count_tokens),
    for_compiler=for_compiler,
    masked_in=32,  # SEQ_MULTI_OF of diffusers, up to which prompts are padded with a token that is attended to
    original_names=ORIGINAL_NAMES,
    diffsynth_table=DiffSynthTable(mu=math.log(3)),
    attention_blocks=(AttentionBlocks("layers", "attention", cache_name="single"),),
)
