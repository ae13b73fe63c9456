"""Declare FLUX.2: components, presets with their weights, and the constants that it was published with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsctl_core.families.flux2.original_names import ORIGINAL_NAMES
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

DIT = Component("dit", "transformer", "diffusers", "Flux2Transformer2DModel")
# Original files of the VAE have the names of Stable Diffusion's, except two layers that are inside encoder and decoder.
VAE = Component(
    "vae",
    "vae",
    "diffusers",
    "AutoencoderKLFlux2",
    single_file_as="AutoencoderKL",
    single_file_renames={"encoder.quant_conv.": "quant_conv.", "decoder.post_quant_conv.": "post_quant_conv."},
)
# klein reads prompts with Qwen3, dev with the language model of Mistral Small 3.
TEXT_ENCODER = Component(
    "text_encoder",
    "text_encoder",
    "transformers",
    "Qwen3ForCausalLM",
    other_classes=("Mistral3ForConditionalGeneration",),
)

FILES = {
    "dit": "transformer/diffusion_pytorch_model*.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model*.safetensors",
}
KLEIN, DEV = "Flux2KleinPipeline", "Flux2Pipeline"

# Settings of the model cards (https://huggingface.co/black-forest-labs): base weights with 50 steps and two-pass
# guidance, distilled weights with 4 steps and no guidance, dev with 50 steps and guidance as an input of the network.
SIZE = {"height": 1024, "width": 1024}
BASE_DEFAULTS = {**SIZE, "num_inference_steps": 50, "cfg_scale": 4.0}
DISTILLED_DEFAULTS = {**SIZE, "num_inference_steps": 4, "cfg_scale": 1.0}
DEV_DEFAULTS = {**SIZE, "num_inference_steps": 50, "cfg_scale": 1.0}
EMBEDDED_GUIDANCE = 4.0

TEXT_TOKENS = 512  # length to which all prompts are padded or truncated


def sampling_mu(image_tokens: int, steps: int) -> float:
    """Return the exponent of the shift that was fitted for FLUX.2, from the number of image tokens and of steps.

    Two linear functions of the tokens, one fitted at 10 steps and one at 200, are interpolated linearly in the steps;
    large images use only the second (https://github.com/black-forest-labs/flux2, sampling.py).
    """
    at_10 = 8.73809524e-05 * image_tokens + 1.89833333
    at_200 = 0.00016927 * image_tokens + 0.45666666
    if image_tokens > 4300:
        return at_200
    slope = (at_200 - at_10) / 190
    return slope * steps + (at_200 - 200 * slope)


def _dit(layers: int, single_layers: int, heads: int, text_width: int, guidance: bool) -> dict[str, Any]:
    return {
        "patch_size": 1,
        "in_channels": 128,
        "num_layers": layers,
        "num_single_layers": single_layers,
        "attention_head_dim": 128,
        "num_attention_heads": heads,
        "joint_attention_dim": text_width,
        "timestep_guidance_channels": 256,
        "mlp_ratio": 3.0,
        "axes_dims_rope": (32, 32, 32, 32),
        "rope_theta": 2000,
        "guidance_embeds": guidance,
    }


# The text width is that of three hidden states of the text encoder: 3 * 5120, 3 * 2560 and 3 * 4096.
PUBLISHED: dict[str, dict[str, Any]] = {
    "dit": _dit(8, 48, 48, 15360, guidance=True),
    "vae": {"latent_channels": 32, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "klein-4b": {"dit": _dit(5, 20, 24, 7680, guidance=False)},
    "klein-9b": {"dit": _dit(8, 24, 32, 12288, guidance=False)},
}


def _qwen3(width: int, intermediate: int, *, tied: bool) -> PublishedConfig:
    sizes = {"vocab_size": 151936, "hidden_size": width, "intermediate_size": intermediate, "head_dim": 128}
    heads = {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8}
    return PublishedConfig("Qwen3ForCausalLM", {**sizes, **heads, "tie_word_embeddings": tied})


# text_encoder/config.json: those of Mistral-Small-3.2-24B (dev), Qwen3-4B and Qwen3-8B (klein).
ENCODERS: dict[str | None, dict[str, PublishedConfig]] = {
    None: {
        "text_encoder": PublishedConfig(
            "Mistral3ForConditionalGeneration",
            {
                "text_config": {
                    "model_type": "mistral",
                    "vocab_size": 131072,
                    "hidden_size": 5120,
                    "intermediate_size": 32768,
                    "num_hidden_layers": 40,
                    "num_attention_heads": 32,
                    "num_key_value_heads": 8,
                    "head_dim": 128,
                    "sliding_window": None,
                    "tie_word_embeddings": False,
                },
                "vision_config": {
                    "model_type": "pixtral",
                    "hidden_size": 1024,
                    "intermediate_size": 4096,
                    "num_hidden_layers": 24,
                    "num_attention_heads": 16,
                    "head_dim": 64,
                    "image_size": 1540,
                    "patch_size": 14,
                },
                "image_token_index": 10,
                "spatial_merge_size": 2,
                "tie_word_embeddings": False,
            },
        )
    },
    "klein-4b": {"text_encoder": _qwen3(2560, 9728, tied=True)},
    "klein-9b": {"text_encoder": _qwen3(4096, 12288, tied=False)},
}
PARAMETERS: dict[str | None, dict[str, int]] = {
    None: {"dit": 32_223_281_152, "vae": 84_046_115, "text_encoder": 24_011_361_280},
    "klein-4b": {"dit": 3_875_544_576, "text_encoder": 4_022_468_096},
    "klein-9b": {"dit": 9_078_581_248, "text_encoder": 8_190_735_360},
}
FLUX_LICENSE = "FLUX Non-Commercial License"

# The smallest sizes with all kinds of layers; the text encoder uses the tokenizer of the embedded model.
TINY: dict[str, dict[str, Any]] = {
    "dit": {
        "patch_size": 1,
        "in_channels": 128,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,
        "timestep_guidance_channels": 32,
        "axes_dims_rope": (4, 4, 4, 4),
        "guidance_embeds": False,
    },
    "vae": {
        "latent_channels": 32,
        "block_out_channels": (4, 8, 8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 64,
    },
    "text_encoder": {
        "vocab_size": 2048,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "text_encoder_out_layers": [1, 2, 3],  # published: 9, 18, 27, which four layers do not have
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
}


def index_defaults(index: Mapping[str, Any]) -> dict[str, Any]:
    """Return the default option values for the model with the model_index.json `index`."""
    if index.get("_class_name") == DEV:
        return dict(DEV_DEFAULTS)
    return dict(DISTILLED_DEFAULTS if index.get("is_distilled") else BASE_DEFAULTS)


def cache_bytes(dit: Mapping[str, Any], width: int, height: int, frames: int, characters: int) -> tuple[int, int]:
    """Return the size in bytes, in bfloat16, of the latents of an image and of the embeddings of a prompt."""
    latents = dit["in_channels"] * (width // 16) * (height // 16) * frames
    return 2 * latents, 2 * TEXT_TOKENS * dit["joint_attention_dim"]


def count_tokens(tokenizer: Any, prompts: Sequence[str], index: Mapping[str, Any] | None) -> list[int]:
    """Return the number of tokens of each prompt with its chat; without an index the model counts as klein."""
    from dsctl_core.families.flux2.chat import chat_texts

    texts = chat_texts(tokenizer, prompts, with_system_message=(index or {}).get("_class_name") == DEV)
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False).input_ids]


def _klein(size: str, *, base: bool) -> Preset:
    """Return a klein preset; the base weights use text encoder, VAE and tokenizer of the distilled weights."""
    distilled = f"black-forest-labs/FLUX.2-klein-{size.upper()}"
    terms: dict[str, Any] = {"license": "Apache-2.0"} if size == "4b" else {"license": FLUX_LICENSE, "gated": True}
    if base:
        shared = dict.fromkeys(("vae", "text_encoder", "tokenizer"), distilled)
        return Preset(
            name=f"flux2-klein-base-{size}",
            summary=f"FLUX.2 klein base {size.upper()}: text to image and editing, the one to train",
            model_id=f"black-forest-labs/FLUX.2-klein-base-{size.upper()}",
            files=FILES,
            from_repositories=shared,
            defaults=BASE_DEFAULTS,
            variant=f"klein-{size}",
            index={"_class_name": KLEIN},
            first_choice=size == "4b",
            **terms,
        )
    return Preset(
        name=f"flux2-klein-{size}",
        summary=f"FLUX.2 klein {size.upper()}: text to image and editing in 4 steps (distilled)",
        model_id=distilled,
        files=FILES,
        defaults=DISTILLED_DEFAULTS,
        variant=f"klein-{size}",
        base_preset=f"flux2-klein-base-{size}",
        index={"_class_name": KLEIN, "is_distilled": True},
        **terms,
    )


FAMILY = Family(
    name="flux2",
    title="FLUX.2",
    pipeline="dsctl_core.families.flux2.pipeline:Flux2Pipeline",
    pipeline_classes=(KLEIN, DEV),
    pipeline_aliases=("Flux2ImagePipeline",),
    components=(DIT, VAE, TEXT_ENCODER),
    readers=(Reader("tokenizer", "tokenizer", "tokenizer/"),),
    presets=(
        _klein("4b", base=True),
        _klein("4b", base=False),
        _klein("9b", base=True),
        _klein("9b", base=False),
        Preset(
            name="flux2-dev",
            summary="FLUX.2 dev, 32 B: text to image and editing, with embedded guidance",
            model_id="black-forest-labs/FLUX.2-dev",
            files=FILES,
            defaults=DEV_DEFAULTS,
            index={"_class_name": DEV},
            license=FLUX_LICENSE,
            gated=True,
        ),
    ),
    # Every linear layer of the blocks: the projections into and out of the joint attention of both streams, their
    # feed-forwards, and the fused projections of the single-stream blocks.
    lora_targets=(
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("linear_in", "linear_out"),
        *("to_qkv_mlp_proj", "to_out"),
    ),
    division_factor=16,  # 8 from the VAE times 2 from its 2x2 patches
    schedule=Schedule(training_mu=0.8, sampling_mu=sampling_mu),
    defaults=BASE_DEFAULTS,
    extra_inputs=("edit_image",),
    optional_inputs=("edit_image",),
    published=PUBLISHED,
    variants=VARIANTS,
    encoders=ENCODERS,
    parameters=PARAMETERS,
    tiny=TINY,
    cache_bytes=cache_bytes,
    prompt_limit=PromptLimit(TEXT_TOKENS, count_tokens),
    original_names=ORIGINAL_NAMES,
    attention_blocks=(AttentionBlocks(), AttentionBlocks("single_transformer_blocks", cache_name="single")),
    embedded_guidance=True,
    diffsynth_table=DiffSynthTable(mu=0.8, last=1 / 1000),
    index_defaults=index_defaults,
)
