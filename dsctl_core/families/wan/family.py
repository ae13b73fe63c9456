"""Declare Wan 2.1 and 2.2: components, presets with their weights, and the constants that they were published with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dsctl_core.errors import DsctlError
from dsctl_core.families.wan.original_names import ORIGINAL_NAMES
from dsctl_core.family import (
    Component,
    Denoiser,
    DiffSynthTable,
    Family,
    FrameInputs,
    Preset,
    PromptLimit,
    PublishedConfig,
    Reader,
    Schedule,
)

# Kinds of models: from text; from text and a first frame; from text, first and last frame; from text and, if one is
# given, a first frame.
T2V, I2V, FLF2V, TI2V = "t2v", "i2v", "flf2v", "ti2v"
KIND_FRAMES = {
    I2V: FrameInputs(("input_image",), ("end_image",)),
    FLF2V: FrameInputs(("input_image", "end_image")),
    TI2V: FrameInputs(optional=("input_image",)),
}

TRANSFORMER = "WanTransformer3DModel"
DIT = Component(
    *("dit", "transformer", "diffusers", TRANSFORMER),
    single_file_renames={"img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed"},
    original_class="WanModel",
    original_folder="high_noise_model",
)
DIT_2 = replace(DIT, name="dit_2", folder="transformer_2", original_folder="low_noise_model", optional=True)
VAE = Component("vae", "vae", "diffusers", "AutoencoderKLWan")
TEXT_ENCODER = Component("text_encoder", "text_encoder", "transformers", "UMT5EncoderModel")
IMAGE_ENCODER = Component(
    "image_encoder",
    "image_encoder",
    "transformers",
    "CLIPVisionModel",
    other_classes=("CLIPVisionModelWithProjection",),
    optional=True,
)

FILES = {
    "dit": "transformer/diffusion_pytorch_model*.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model*.safetensors",
}
TWO = {"dit_2": "transformer_2/diffusion_pytorch_model*.safetensors"}
CLIP = {"image_encoder": "image_encoder/model*.safetensors", "image_processor": "image_processor/"}
FROM_TEXT, FROM_IMAGE = "WanPipeline", "WanImageToVideoPipeline"

TEXT_TOKENS = 512  # the transformer attends to this many text tokens, those after the prompt being zeros
CLIP_TOKENS, CLIP_WIDTH = 257, 1280
CHARACTERS_PER_TOKEN = 4  # approximate value for English

# Means and standard deviations of the latents, per channel. Those of the VAE of Wan 2.1 are diffusers' defaults; those
# of 2.2 are in wan/modules/vae2_2.py of https://github.com/Wan-Video/Wan2.2.
VAE_2_2_MEAN = [
    *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557),
    *(-0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825),
    *(-0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
    *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230),
    *(-0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748),
    *(0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
]
VAE_2_2_STD = [
    *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013),
    *(0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978),
    *(0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
    *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093),
    *(0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887),
    *(0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
]


def _dit(layers: int, heads: int, ffn: int, channels: tuple[int, int], **more: Any) -> dict[str, Any]:
    return {
        "patch_size": (1, 2, 2),
        "num_attention_heads": heads,
        "attention_head_dim": 128,
        "in_channels": channels[0],
        "out_channels": channels[1],
        "text_dim": 4096,
        "freq_dim": 256,
        "ffn_dim": ffn,
        "num_layers": layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "rope_max_seq_len": 1024,
        **more,
    }


# Input channels of I2V are the 16 of the noise, 4 of the mask and 16 of the condition.
SEES = {"image_dim": CLIP_WIDTH, "added_kv_proj_dim": 5120}
T2V_14B = _dit(40, 40, 13824, (16, 16))
I2V_A14B = _dit(40, 40, 13824, (36, 16))
PUBLISHED: dict[str, dict[str, Any]] = {
    "dit": T2V_14B,
    "vae": {"base_dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2},
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "t2v-1.3b": {"dit": _dit(30, 12, 8960, (16, 16))},
    "i2v-14b": {"dit": _dit(40, 40, 13824, (36, 16), **SEES)},
    "flf2v-14b": {"dit": _dit(40, 40, 13824, (36, 16), **SEES, pos_embed_seq_len=2 * CLIP_TOKENS)},
    "i2v-a14b": {"dit": I2V_A14B},
    "ti2v-5b": {
        "dit": _dit(30, 24, 14336, (48, 48)),
        "vae": {
            "base_dim": 160,
            "decoder_base_dim": 256,
            "z_dim": 48,
            "dim_mult": [1, 2, 4, 4],
            "num_res_blocks": 2,
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_spatial": 16,
            "latents_mean": VAE_2_2_MEAN,
            "latents_std": VAE_2_2_STD,
        },
    },
}

# text_encoder/config.json: the encoder of google/umt5-xxl; image_encoder/config.json: the images of CLIP ViT-H/14.
UMT5_XXL = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
CLIP_H = {
    "hidden_size": CLIP_WIDTH,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "projection_dim": 1024,
}
ENCODERS: dict[str | None, dict[str, PublishedConfig]] = {
    None: {
        "text_encoder": PublishedConfig("UMT5EncoderModel", UMT5_XXL),
        "image_encoder": PublishedConfig("CLIPVisionModel", CLIP_H),
    }
}
# Counted from the sizes above. The files of T2V 1.3B, T2V A14B and TI2V 5B, but for small headers, have the same.
PARAMETERS: dict[str | None, dict[str, int]] = {
    None: {
        **dict.fromkeys(("dit", "dit_2"), 14_288_491_584),
        "vae": 126_892_531,
        "text_encoder": 5_680_910_336,
        "image_encoder": 630_766_080,
    },
    "t2v-1.3b": {"dit": 1_418_996_800},
    "i2v-14b": {"dit": 16_394_878_784},
    "flf2v-14b": {"dit": 16_395_536_704},
    "i2v-a14b": dict.fromkeys(("dit", "dit_2"), 14_288_901_184),
    "ti2v-5b": {"dit": 4_999_787_712, "vae": 704_688_668},
}
# What is stored in float32: the text encoder was rounded with 2.2.
FLOAT32_2_1, FLOAT32_2_2 = ("dit", "vae", "text_encoder"), ("dit", "dit_2", "vae")

# The smallest sizes with all kinds of layers.
TINY: dict[str, dict[str, Any]] = {
    "dit": {**_dit(2, 2, 32, (16, 16)), "attention_head_dim": 12, "text_dim": 16, "freq_dim": 16},
    "vae": {"base_dim": 16, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    "text_encoder": {
        "vocab_size": 2048,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 2,
        "num_heads": 2,
        "pad_token_id": 2040,
        "eos_token_id": 2042,
    },
}


def defaults_of(height: int, width: int, steps: int, cfg_scale: Any, frames: int = 81, fps: int = 16) -> dict[str, Any]:
    """Return the default option values of a preset; `cfg_scale` is one for each denoiser, or one."""
    return {
        "height": height,
        "width": width,
        "max_pixels": height * width,
        "num_frames": frames,
        "fps": fps,
        "num_inference_steps": steps,
        "cfg_scale": cfg_scale,
    }


# Settings of wan/configs and generate.py of the original repositories (https://github.com/Wan-Video); the guidance of
# two denoisers is that of high noise, then that of low noise.
SMALL, LARGE = (480, 832), (720, 1280)
T2V_DEFAULTS = defaults_of(*SMALL, 50, 5.0)
T2V_A14B_DEFAULTS = defaults_of(*LARGE, 40, (4.0, 3.0))
I2V_DEFAULTS = defaults_of(*SMALL, 40, 5.0)
I2V_A14B_DEFAULTS = defaults_of(*LARGE, 40, (3.5, 3.5))
TI2V_DEFAULTS = defaults_of(704, 1280, 50, 5.0, frames=121, fps=24)
# Of the embedded model, which was trained at this size and length.
TINY_VIDEO_DEFAULTS = {**defaults_of(64, 64, 20, 3.0, frames=17, fps=8), "learning_rate": 1e-3}
TINY_VIDEO_SCHEDULE = replace(Schedule.constant(3.0), solver="unipc")


def schedule_of(shift: float) -> Schedule:
    """Return the schedule with the constant `shift` for sampling; all sizes are trained at 5, as in DiffSynth.

    Every scheduler_config.json of the published models names a UniPCMultistepScheduler.
    """
    return replace(Schedule.constant(shift), training_mu=math.log(5), solver="unipc")


def config_kind(config: Mapping[str, Any]) -> str:
    """Return the kind of the model with the transformer `config`, by its numbers of channels.

    Raises DsctlError for a transformer with other inputs than those of the published kinds.
    """
    given, made = config["in_channels"], config["out_channels"]
    if given == made:
        return TI2V if made == VARIANTS["ti2v-5b"]["dit"]["out_channels"] else T2V
    if given == 2 * made + 4:
        return I2V if config.get("pos_embed_seq_len") is None else FLF2V
    raise DsctlError(
        f"a {TRANSFORMER} with {given} input and {made} output channels takes inputs that are not known here",
        hint="use a model that makes clips from text, or from text and the first or the first and last frame",
    )


def index_denoisers(index: Mapping[str, Any]) -> tuple[Denoiser, ...]:
    """Return the two denoisers of weights with a boundary, that of high noise first, or the one of others."""
    boundary = index.get("boundary_ratio")
    if boundary is None or index.get("transformer_2") in (None, [None, None]):
        return (Denoiser("dit"),)
    return (Denoiser("dit", low=boundary), Denoiser("dit_2", high=boundary))


def index_defaults(index: Mapping[str, Any]) -> dict[str, Any]:
    """Return the default option values for the model with the model_index.json `index`."""
    from_image, two = index.get("_class_name") == FROM_IMAGE, len(index_denoisers(index)) == 2
    if index.get("expand_timesteps"):
        return TI2V_DEFAULTS
    if two:
        return I2V_A14B_DEFAULTS if from_image else T2V_A14B_DEFAULTS
    return I2V_DEFAULTS if from_image else T2V_DEFAULTS


def count_tokens(tokenizer: Any, prompts: Sequence[str], index: Mapping[str, Any] | None) -> list[int]:
    """Return the number of tokens of each prompt, cleaned, with the token at its end."""
    from dsctl_core.families.wan.text import cleaned

    return [len(ids) for ids in tokenizer([cleaned(prompt) for prompt in prompts]).input_ids]


def cache_bytes(dit: Mapping[str, Any], width: int, height: int, frames: int, characters: int) -> tuple[int, int]:
    """Return the estimated size in bytes, in bfloat16, of the latents of a clip and of the embeddings of a prompt.

    With the latents are those of the condition and its mask, and what the image encoder makes of the given frames.
    """
    kind = config_kind(dit)
    scale = 16 if kind == TI2V else 8
    numbers = dit["in_channels"] * ((frames - 1) // 4 + 1) * (height // scale) * (width // scale)
    if dit.get("image_dim") is not None:
        numbers += (2 if kind == FLF2V else 1) * CLIP_TOKENS * dit["image_dim"]
    tokens = min(-(-characters // CHARACTERS_PER_TOKEN) + 1, TEXT_TOKENS)
    return 2 * numbers, 2 * tokens * dit["text_dim"]


def published_preset(
    name: str, summary: str, repository: str, shift: float, defaults: dict[str, Any], **more: Any
) -> Preset:
    """Return a preset whose files are the usual ones and those in `more`."""
    files = {**FILES, **more.pop("files", {})}
    stored = more.pop("float32", FLOAT32_2_1 if name.startswith("wan2.1") else FLOAT32_2_2)
    return Preset(
        *(name, summary, repository, files),
        defaults=defaults,
        schedule=schedule_of(shift),
        license="Apache-2.0",
        float32=tuple(part for part in stored if part in files),
        **more,
    )


FROM_ONE_IMAGE = {"_class_name": FROM_IMAGE}
PRESETS = (
    Preset(
        name="tiny-video",
        summary="Embedded 4.6 M model for clips of 17 frames at 64x64: trains and runs on a CPU in minutes",
        folder="tiny-video",
        license="Apache-2.0",
        defaults=TINY_VIDEO_DEFAULTS,
        schedule=TINY_VIDEO_SCHEDULE,
    ),
    published_preset(
        *("wan2.1-t2v-1.3b", "Wan 2.1 text to video, 1.3 B", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        *(3.0, T2V_DEFAULTS),
        variant="t2v-1.3b",
        first_choice=True,
    ),
    published_preset(
        *("wan2.1-t2v-14b", "Wan 2.1 text to video, 14 B", "Wan-AI/Wan2.1-T2V-14B-Diffusers"),
        *(5.0, defaults_of(*LARGE, 50, 5.0)),
        first_choice=True,
    ),
    published_preset(
        *("wan2.1-i2v-14b-480p", "Wan 2.1 image to video, 14 B, for 480p", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"),
        *(3.0, I2V_DEFAULTS),
        variant="i2v-14b",
        files=CLIP,
        index=FROM_ONE_IMAGE,
    ),
    published_preset(
        *("wan2.1-i2v-14b-720p", "Wan 2.1 image to video, 14 B, for 720p", "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers"),
        *(5.0, defaults_of(*LARGE, 40, 5.0)),
        variant="i2v-14b",
        files=CLIP,
        index=FROM_ONE_IMAGE,
    ),
    published_preset(
        *(
            "wan2.1-flf2v-14b-720p",
            "Wan 2.1 first and last frame to video, 14 B",
            "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers",
        ),
        *(16.0, defaults_of(*LARGE, 50, 5.0)),
        variant="flf2v-14b",
        files=CLIP,
        index=FROM_ONE_IMAGE,
    ),
    published_preset(
        *("wan2.2-t2v-a14b", "Wan 2.2 text to video, two 14 B denoisers", "Wan-AI/Wan2.2-T2V-A14B-Diffusers"),
        *(12.0, T2V_A14B_DEFAULTS),
        files=TWO,
        index={"boundary_ratio": 0.875},
    ),
    published_preset(
        *("wan2.2-i2v-a14b", "Wan 2.2 image to video, two 14 B denoisers", "Wan-AI/Wan2.2-I2V-A14B-Diffusers"),
        *(5.0, I2V_A14B_DEFAULTS),
        variant="i2v-a14b",
        files=TWO,
        index={**FROM_ONE_IMAGE, "boundary_ratio": 0.9},
    ),
    published_preset(
        *("wan2.2-ti2v-5b", "Wan 2.2 text or image to video, 5 B", "Wan-AI/Wan2.2-TI2V-5B-Diffusers"),
        *(5.0, TI2V_DEFAULTS),
        variant="ti2v-5b",
        index={"expand_timesteps": True},
    ),
)

FAMILY = Family(
    name="wan",
    title="Wan",
    pipeline="dsctl_core.families.wan.pipeline:WanPipeline",
    pipeline_classes=(FROM_TEXT, FROM_IMAGE),
    components=(DIT, DIT_2, VAE, TEXT_ENCODER, IMAGE_ENCODER),
    readers=(
        Reader("tokenizer", "tokenizer", "tokenizer/"),
        Reader(
            *("image_processor", "image_processor", "image_processor/", "image_processor"),
            optional=True,
            components=("image_encoder",),
        ),
    ),
    presets=PRESETS,
    # Those of DiffSynth's training scripts: q, k, v, o of both attentions, and both layers of the feed-forward.
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"),
    division_factor=16,  # 8 from the VAE times 2 from the patches
    kind_division_factors={TI2V: 32},
    config_kind=config_kind,
    kind_frames=KIND_FRAMES,
    time_division=(4, 1),
    schedule=schedule_of(5.0),
    defaults=T2V_DEFAULTS,
    extra_inputs=("input_image", "end_image"),
    optional_inputs=("input_image",),
    published=PUBLISHED,
    variants=VARIANTS,
    encoders=ENCODERS,
    parameters=PARAMETERS,
    tiny=TINY,
    cache_bytes=cache_bytes,
    prompt_limit=PromptLimit(TEXT_TOKENS, count_tokens),
    original_names=ORIGINAL_NAMES,
    diffsynth_table=DiffSynthTable(mu=math.log(5)),
    attention_blocks=(),
    index_defaults=index_defaults,
    index_denoisers=index_denoisers,
)
