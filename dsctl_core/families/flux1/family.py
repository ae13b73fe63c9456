"""Declare FLUX.1: components, presets with their weights, and the constants that it was published with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dsctl_core.errors import DsctlError
from dsctl_core.families.flux1.controlnets import CONTROLNETS
from dsctl_core.families.flux1.original_names import ORIGINAL_NAMES
from dsctl_core.families.z_image.family import VAE_CONFIG
from dsctl_core.family import (
    AttentionBlocks,
    Component,
    DiffSynthTable,
    Family,
    ModelParts,
    Preset,
    PromptLimit,
    PublishedConfig,
    Reader,
    Schedule,
)

DIT = Component("dit", "transformer", "diffusers", "FluxTransformer2DModel")
VAE = Component("vae", "vae", "diffusers", "AutoencoderKL")
# CLIP-L gives one vector for the whole prompt, and the encoder of T5-XXL one for each token.
CLIP = Component("text_encoder", "text_encoder", "transformers", "CLIPTextModel")
T5 = Component("text_encoder_2", "text_encoder_2", "transformers", "T5EncoderModel")

FILES = {
    "dit": "transformer/diffusion_pytorch_model*.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "text_encoder_2": "text_encoder_2/model*.safetensors",
}
PLAIN, KONTEXT, FILL = "FluxPipeline", "FluxKontextPipeline", "FluxFillPipeline"

# What a model is: the pipeline class tells Kontext, which has the network of dev; the config of the network tells Fill
# (more input channels) and schnell (no embedded guidance), which are kinds of models.
CLASS, GUIDANCE, SIZES = "_class_name", "embedded_guidance", "reference_sizes"
GUIDED, SCHNELL, MASKED = "guided", "schnell", "fill"

# Settings of the model cards (https://huggingface.co/black-forest-labs), and diffusers' 28 steps for Kontext and Krea.
SIZE = {"height": 1024, "width": 1024, "cfg_scale": 1.0}
DEV_DEFAULTS = {**SIZE, "num_inference_steps": 50}
SHORT_DEFAULTS = {**SIZE, "num_inference_steps": 28}
SCHNELL_DEFAULTS = {**SIZE, "num_inference_steps": 4}
DEV_GUIDANCE, KREA_GUIDANCE, KONTEXT_GUIDANCE, FILL_GUIDANCE = 3.5, 4.5, 2.5, 30.0

FACTOR = 16  # sides are multiples of this: 8 from the VAE times 2 from the 2x2 patches
CLIP_TOKENS = 77
TEXT_TOKENS, SCHNELL_TEXT_TOKENS = 512, 256  # length to which all prompts are padded or truncated for T5

# Sizes (width, height) that Kontext was trained with (https://github.com/black-forest-labs/flux, util.py).
KONTEXT_SIZES = (
    *((672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104)),
    (1024, 1024),
    *((1104, 944), (1184, 880), (1248, 832), (1328, 800), (1392, 752), (1456, 720), (1504, 688), (1568, 672)),
)


def takes_references(parts: ModelParts) -> bool:
    """Return whether a model edits reference images; single components without a model_index.json can be Kontext's."""
    return not is_fill(parts) and parts.settings.get(CLASS, KONTEXT) == KONTEXT


def is_fill(parts: ModelParts) -> bool:
    """Return whether the network reads a masked image and its mask in addition to the noisy latents."""
    return parts.kind == MASKED


def text_tokens(parts: ModelParts) -> int:
    """Return the number of T5's tokens of all prompts."""
    return SCHNELL_TEXT_TOKENS if parts.kind == SCHNELL else TEXT_TOKENS


def count_tokens(tokenizer: Any, prompts: Sequence[str], index: Mapping[str, Any] | None) -> list[int]:
    """Return the number of T5's tokens of each prompt, with that of its end."""
    return [len(ids) for ids in tokenizer(list(prompts)).input_ids]


def config_kind(config: Mapping[str, Any]) -> str:
    """Return the kind of the model with the transformer `config`; an entry that is missing has the class's value.

    Raises DsctlError for a transformer with other inputs than those of the published kinds.
    """
    channels = config.get("in_channels", DIT_CONFIG["in_channels"])
    if channels == FILL_CONFIG["in_channels"]:
        return MASKED
    if channels == DIT_CONFIG["in_channels"]:
        return GUIDED if config.get("guidance_embeds", False) else SCHNELL
    raise DsctlError(
        f"a {DIT.class_name} with {channels} input channels takes inputs that are not known here",
        hint="use FLUX.1 dev, schnell, Krea, Kontext or Fill",
    )


def guidance_of(parts: ModelParts) -> float:
    """Return the embedded guidance with which a model is used."""
    usual = FILL_GUIDANCE if is_fill(parts) else DEV_GUIDANCE
    return parts.settings.get(GUIDANCE, KONTEXT_GUIDANCE if parts.settings.get(CLASS) == KONTEXT else usual)


def edited_size(parts: ModelParts, references: Sequence[tuple[int, int]], pixels: int) -> tuple[int, int]:
    """Return (width, height) of the edited image: a square of about `pixels` pixels, as in diffusers."""
    side = max(round(math.sqrt(pixels) / FACTOR), 1) * FACTOR
    return side, side


def index_defaults(index: Mapping[str, Any]) -> dict[str, Any]:
    """Return the default option values for the model with the model_index.json `index`."""
    return dict(SHORT_DEFAULTS if index.get(CLASS) == KONTEXT else DEV_DEFAULTS)


DIT_CONFIG: dict[str, Any] = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
# Noisy latents and masked latents of 16 channels and a mask of 8 x 8 pixels, each in 2x2 patches.
FILL_CONFIG = {**DIT_CONFIG, "in_channels": 4 * (16 + 16 + 64), "out_channels": 64}
PUBLISHED: dict[str, dict[str, Any]] = {"dit": DIT_CONFIG, "vae": VAE_CONFIG}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "schnell": {"dit": {**DIT_CONFIG, "guidance_embeds": False}},
    "fill": {"dit": FILL_CONFIG},
}

# text_encoder/config.json and text_encoder_2/config.json: the text models of CLIP ViT-L/14 and of T5 v1.1 XXL.
CLIP_SIZES = {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768}
CLIP_SIZES |= {"num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": CLIP_TOKENS}
T5_SIZES = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
ENCODERS: dict[str | None, dict[str, PublishedConfig]] = {
    None: {
        "text_encoder": PublishedConfig(CLIP.class_name, CLIP_SIZES),
        "text_encoder_2": PublishedConfig(T5.class_name, {**T5_SIZES, "feed_forward_proj": "gated-gelu"}),
    }
}
PARAMETERS: dict[str | None, dict[str, int]] = {
    None: {"dit": 11_901_408_320, "vae": 83_819_683, "text_encoder": 123_060_480, "text_encoder_2": 4_762_310_656},
    "schnell": {"dit": 11_891_178_560},
    "fill": {"dit": 11_902_391_360},
}
DEV_LICENSE = "FLUX.1 [dev] Non-Commercial License"

# The smallest sizes with all kinds of layers.
TINY: dict[str, dict[str, Any]] = {
    "dit": {
        "in_channels": 64,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "pooled_projection_dim": 16,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 6, 6),
    },
    "vae": {**VAE_CONFIG, "block_out_channels": (4, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4},
    "text_encoder": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "text_encoder_2": {"d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
}


def cache_bytes(dit: Mapping[str, Any], width: int, height: int, frames: int, characters: int) -> tuple[int, int]:
    """Return the size in bytes, in bfloat16, of the latents of an image (Fill: and mask) and of its prompt."""
    latents = dit["in_channels"] * (width // FACTOR) * (height // FACTOR) * frames
    tokens = TEXT_TOKENS if dit["guidance_embeds"] else SCHNELL_TEXT_TOKENS
    return 2 * latents, 2 * (tokens * dit["joint_attention_dim"] + dit["pooled_projection_dim"])


def _preset(name: str, summary: str, defaults: dict[str, Any], kind: str = PLAIN, **more: Any) -> Preset:
    """Return the preset of the repository FLUX.1-`name`; `kind` is its pipeline class."""
    index = {CLASS: kind, **more.pop("index", {})}
    repository = f"black-forest-labs/FLUX.1-{name}"
    # Hugging Face asks for consent before all of them, also before schnell, which has a free license.
    more = {"license": DEV_LICENSE, "gated": True, **more}
    return Preset(f"flux1-{name.lower()}", summary, repository, FILES, defaults=defaults, index=index, **more)


FAMILY = Family(
    name="flux1",
    title="FLUX.1",
    pipeline="dsctl_core.families.flux1.pipeline:Flux1Pipeline",
    pipeline_classes=(PLAIN, KONTEXT, FILL, "FluxImg2ImgPipeline", "FluxInpaintPipeline"),
    components=(DIT, VAE, CLIP, T5),
    readers=(
        Reader("tokenizer", "tokenizer", "tokenizer/"),
        Reader("tokenizer_2", "tokenizer_2", "tokenizer_2/", components=("text_encoder_2",)),
    ),
    presets=(
        _preset("dev", "FLUX.1 dev, 12 B text to image, with embedded guidance: the one to train", DEV_DEFAULTS),
        _preset(
            "schnell",
            "FLUX.1 schnell: text to image in 4 steps (distilled), Apache-2.0",
            SCHNELL_DEFAULTS,
            variant="schnell",
            schedule=Schedule.constant(1.0),
            license="Apache-2.0",
        ),
        _preset("Krea-dev", "FLUX.1 Krea dev: text to image", SHORT_DEFAULTS, index={GUIDANCE: KREA_GUIDANCE}),
        _preset("Kontext-dev", "FLUX.1 Kontext dev: editing of a reference picture", SHORT_DEFAULTS, KONTEXT),
        _preset("Fill-dev", "FLUX.1 Fill dev: inpainting and outpainting", DEV_DEFAULTS, FILL, variant="fill"),
    ),
    # Every linear layer of attention and feed-forward in the blocks with a stream each for prompt and image, and the
    # projections into and out of those with one stream for both.
    lora_targets=(
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
        *("proj_mlp", r"single_transformer_blocks\.\d+\.proj_out"),
    ),
    division_factor=FACTOR,
    # DiffSynth trains at a constant shift of 3; the line from which inference takes its shift is in the scheduler file.
    schedule=Schedule(training_mu=math.log(3.0)),
    defaults=DEV_DEFAULTS,
    extra_inputs=("edit_image", "inpaint_mask"),
    optional_inputs=("edit_image",),
    controlnets=CONTROLNETS,
    published=PUBLISHED,
    variants=VARIANTS,
    encoders=ENCODERS,
    parameters=PARAMETERS,
    tiny=TINY,
    cache_bytes=cache_bytes,
    # CLIP reads the first 77 tokens only, but its one vector is of the whole prompt: what is behind them is in T5's.
    prompt_limit=PromptLimit(TEXT_TOKENS, count_tokens, "tokenizer_2", of_kind={SCHNELL: SCHNELL_TEXT_TOKENS}),
    original_names=ORIGINAL_NAMES,
    attention_blocks=(AttentionBlocks(), AttentionBlocks("single_transformer_blocks", cache_name="single")),
    embedded_guidance=True,
    diffsynth_table=DiffSynthTable(mu=math.log(3), last=0.003 / 1.002),
    index_defaults=index_defaults,
    index_settings=(CLASS, GUIDANCE, SIZES),
    config_kind=config_kind,
    edited_size=edited_size,
)
