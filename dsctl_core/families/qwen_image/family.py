"""Declare Qwen-Image: components, presets with their weights, and the constants that it was published with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsctl_core.families.qwen_image.controlnets import CONTROLNETS
from dsctl_core.family import (
    AttentionBlocks,
    Captioner,
    Component,
    DiffSynthTable,
    Family,
    Preset,
    PromptLimit,
    PublishedConfig,
    Reader,
    Schedule,
)

DIT = Component("dit", "transformer", "diffusers", "QwenImageTransformer2DModel")
# The VAE has the architecture of Wan's, so original and ComfyUI files have the names that diffusers converts for Wan.
VAE = Component("vae", "vae", "diffusers", "AutoencoderKLQwenImage", single_file_as="AutoencoderKLWan")
TEXT_ENCODER = Component("text_encoder", "text_encoder", "transformers", "Qwen2_5_VLForConditionalGeneration")

# The text encoder is the whole of Qwen2.5-VL-7B-Instruct, with the parts that see and speak.
CAPTIONER = Captioner("text_encoder", "dsctl_core.families.qwen_vl_chat:processor")

# Both published repositories have the same layout: 9 transformer shards, 4 text encoder shards, one VAE file.
FILES = {
    "dit": "transformer/diffusion_pytorch_model*.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model*.safetensors",
}

# Recommended by the model card: 1328x1328 for 1:1, 50 steps, true CFG 4.0 (https://huggingface.co/Qwen/Qwen-Image).
OFFICIAL_DEFAULTS = {"height": 1328, "width": 1328, "num_inference_steps": 50, "cfg_scale": 4.0}

# Of the embedded model, which was trained at this size; larger pictures are scaled down to its area for training.
TINY_DEFAULTS = {
    "height": 96,
    "width": 96,
    "num_inference_steps": 20,
    "cfg_scale": 3.0,
    "learning_rate": 1e-3,
    "max_pixels": 96 * 96,
}

# Means and standard deviations are over the training images, per latent channel; they are part of the VAE's config.
LATENTS_MEAN = [
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
]
LATENTS_STD = [
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
]

PUBLISHED: dict[str, dict[str, Any]] = {
    "dit": {
        "patch_size": 2,
        "in_channels": 64,
        "out_channels": 16,
        "num_layers": 60,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 3584,
        "guidance_embeds": False,
        "axes_dims_rope": (16, 56, 56),
    },
    "vae": {
        "base_dim": 96,
        "z_dim": 16,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attn_scales": [],
        "temperal_downsample": [False, True, True],
        "dropout": 0.0,
        "latents_mean": LATENTS_MEAN,
        "latents_std": LATENTS_STD,
    },
}

# text_encoder/config.json: that of Qwen2.5-VL-7B-Instruct.
ENCODER = PublishedConfig(
    "Qwen2_5_VLForConditionalGeneration",
    {
        "text_config": {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]},
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        "tie_word_embeddings": False,
    },
)
# From the index files of the weights: total_size 40860802176 and 16584333312; the VAE has no index file.
PARAMETERS = {"dit": 20_430_401_088, "vae": 126_892_531, "text_encoder": 8_292_166_656}

# The smallest sizes with all kinds of layers; the text encoder uses the tokenizer of the embedded model.
TINY: dict[str, dict[str, Any]] = {
    "dit": {
        "patch_size": 2,
        "in_channels": 64,
        "out_channels": 16,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "guidance_embeds": False,
        "axes_dims_rope": (4, 6, 6),
    },
    "vae": {
        "base_dim": 8,
        "z_dim": 16,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 1,
        "attn_scales": [],
        "temperal_downsample": [False, True, True],
        "dropout": 0.0,
        "latents_mean": LATENTS_MEAN,
        "latents_std": LATENTS_STD,
    },
    "text_encoder": {
        "text_config": {
            "vocab_size": 2048,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            "bos_token_id": 2040,
            "eos_token_id": 2042,
            "pad_token_id": 2040,
        },
        "vision_config": {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
        "image_token_id": 2046,
        "video_token_id": 2047,
        "vision_start_token_id": 2043,
        "vision_end_token_id": 2044,
        "tie_word_embeddings": True,
    },
}

CHARACTERS_PER_TOKEN = 4  # approximate value for English
CHAT_TOKENS = 5  # tokens of the chat template after the prompt


# The prompt is encoded inside the chat template that the model was trained with. The first PREFIX tokens, the system
# prompt, are the same for all prompts and are dropped from the output (Qwen-Image report, arXiv:2508.02324).
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
PREFIX = 34
MAX_TOKENS = 1024


def count_tokens(tokenizer: Any, prompts: Sequence[str], index: Mapping[str, Any] | None) -> list[int]:
    """Return the number of tokens of each prompt in its chat, without the system prompt."""
    return [len(ids) - PREFIX for ids in tokenizer([TEMPLATE.format(prompt) for prompt in prompts]).input_ids]


def cache_bytes(dit: Mapping[str, Any], width: int, height: int, frames: int, characters: int) -> tuple[int, int]:
    """Return the estimated size in bytes, in bfloat16, of the latents of an image and of the embeddings of a prompt."""
    latents = dit["out_channels"] * (width // 8) * (height // 8) * frames
    tokens = -(-characters // CHARACTERS_PER_TOKEN) + CHAT_TOKENS
    return 2 * latents, 2 * tokens * dit["joint_attention_dim"]


def for_compiler(dit: Any) -> None:
    """Have the attention of `dit` turn queries and keys in real numbers."""
    from dsctl_core.families.qwen_image.joint_attention import for_compiler as real_rotary

    real_rotary(dit)


FAMILY = Family(
    name="qwen-image",
    title="Qwen-Image",
    pipeline="dsctl_core.families.qwen_image.pipeline:QwenImagePipeline",
    pipeline_classes=("QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"),
    components=(DIT, VAE, TEXT_ENCODER),
    readers=(Reader("tokenizer", "tokenizer", "tokenizer/"),),
    presets=(
        Preset(
            name="tiny",
            summary="Embedded 7 M model for 96x96 pictures: trains and runs on a CPU in seconds",
            folder="tiny",
            license="Apache-2.0",
            defaults=TINY_DEFAULTS,
            first_choice=True,
        ),
        Preset(
            name="qwen-image",
            summary="Qwen-Image, 20 B text-to-image",
            model_id="Qwen/Qwen-Image",
            files=FILES,
            defaults=OFFICIAL_DEFAULTS,
            license="Apache-2.0",
            first_choice=True,
        ),
        Preset(
            name="qwen-image-2512",
            summary="Qwen-Image-2512, the December 2025 update",
            model_id="Qwen/Qwen-Image-2512",
            files=FILES,
            defaults=OFFICIAL_DEFAULTS,
            license="Apache-2.0",
        ),
    ),
    # The list of the training guide (shared spec 001-003, "Standard Supervised Training"): the six projections into
    # the joint attention, three for the image stream and three for the text stream.
    lora_targets=("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"),
    division_factor=16,  # 8 from the VAE times 2 from the 2x2 patches
    # scheduler/scheduler_config.json of Qwen/Qwen-Image. mu = 0.8 for training is what DiffSynth trains the
    # published LoRAs with, whatever the resolution.
    schedule=Schedule(
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=256,
        max_image_seq_len=8192,
        shift_terminal=0.02,
        training_mu=0.8,
    ),
    defaults=OFFICIAL_DEFAULTS,
    extra_inputs=(),
    published=PUBLISHED,
    encoders={None: {"text_encoder": ENCODER}},
    parameters={None: PARAMETERS},
    masked_in=1,
    for_compiler=for_compiler,
    tiny=TINY,
    captioner=CAPTIONER,
    cache_bytes=cache_bytes,
    prompt_limit=PromptLimit(MAX_TOKENS, count_tokens),
    same_layers_as=("qwen-image-edit", "qwen-image-layered"),
    diffsynth_table=DiffSynthTable(mu=0.8, terminal=0.02),
    controlnets=CONTROLNETS,
    attention_blocks=(AttentionBlocks(other_cache_names=("block",)),),  # block_0, ... in DiffSynth-Studio
)
