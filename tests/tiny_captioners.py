"""Tiny random vision-language models on disk, made by the official classes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from dsctl_core.families import load_family
from tests.tiny_models import embedded_tokenizer, randomize

# As the models' own chats put pictures and texts, in short.
CHAT = (
    "{%% for message in messages %%}{{ message.role }}: {%% for part in message.content %%}"
    "{%% if part.type == 'image' %%}%s{%% else %%}{{ part.text }}{%% endif %%}{%% endfor %%}\n{%% endfor %%}"
    "{%% if add_generation_prompt %%}assistant: {%% endif %%}"
)


def write_tiny_captioner(kind: str, folder: Path, seed: int = 0) -> Path:
    """Write a tiny random model to `folder`: "qwen2.5-vl", or "llava" with a vision tower of CLIP."""
    generator = torch.Generator().manual_seed(seed)
    shutil.copytree(embedded_tokenizer(), folder)
    model, pictures = (_qwen if kind == "qwen2.5-vl" else _llava)(folder)
    randomize(model, generator).save_pretrained(folder)
    pictures.save_pretrained(folder)
    return folder


def _qwen(folder: Path) -> tuple[Any, Any]:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

    chat = CHAT % "<|vision_start|><|image_pad|><|vision_end|>"
    (folder / "chat_template.jinja").write_text(chat, encoding="utf-8")
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**load_family("qwen-image").tiny["text_encoder"]))
    return model, Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 84})


def _llava(folder: Path) -> tuple[Any, Any]:
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessorPil,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = {**load_family("flux2").tiny["text_encoder"], "model_type": "llama"}
    text.pop("text_encoder_out_layers")
    sees = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    token = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    config = LlavaConfig(
        text_config=text,
        vision_config={"model_type": "clip_vision_model", **sees, "image_size": 28, "patch_size": 14},
        image_token_index=token,
    )
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    settings: dict[str, Any] = {
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "image_token": "<|image_pad|>",
        "chat_template": CHAT % "<|image_pad|>",
    }
    return LlavaForConditionalGeneration(config), LlavaProcessor(pictures, tokenizer, **settings)
