"""Makes the folder that training starts from: all components in the layout of diffusers.

The transformer and the text encoder start from random numbers; the autoencoder and the tokenizer are
already trained.
"""

import json
import shutil
from pathlib import Path

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from tokenizer import VOCABULARY

TEXT_WIDTH = 128
TRANSFORMER = {
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 4,
    "attention_head_dim": 44,
    "num_attention_heads": 4,
    "joint_attention_dim": TEXT_WIDTH,
    "axes_dims_rope": (8, 18, 18),
}
# Qwen-Image's own schedule: at 36 tokens the shift is base_shift, and the last sigma 0.02.
SCHEDULER = {
    "num_train_timesteps": 1000,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
}
COMPONENTS = {
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "text_encoder": ("transformers", "Qwen2_5_VLForConditionalGeneration"),
    "tokenizer": ("transformers", "Qwen2Tokenizer"),
    "transformer": ("diffusers", "QwenImageTransformer2DModel"),
    "vae": ("diffusers", "AutoencoderKLQwenImage"),
}


def new_transformer() -> QwenImageTransformer2DModel:
    """Make the transformer; its blocks start as identities and its output as zero."""
    model = QwenImageTransformer2DModel(**TRANSFORMER)
    closed = [model.norm_out.linear, model.proj_out]
    for block in model.transformer_blocks:
        closed += [block.img_mod[1], block.txt_mod[1]]
    for layer in closed:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def new_text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """Make the text encoder with the smallest vision tower that the class allows."""

    def token(name: str) -> int:
        return tokenizer.convert_tokens_to_ids(f"<|{name}|>")

    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [4, 6, 6],
        },
        "tie_word_embeddings": True,
        "bos_token_id": token("endoftext"),
        "eos_token_id": token("im_end"),
        "pad_token_id": token("endoftext"),
    }
    vision = {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": TEXT_WIDTH,
        "fullatt_block_indexes": [0],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        vision_start_token_id=token("vision_start"),
        vision_end_token_id=token("vision_end"),
        image_token_id=token("image_pad"),
        video_token_id=token("video_pad"),
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def prepare(folder: Path, vae: Path, tokenizer: Path, seed: int = 0) -> None:
    """Write a folder with new networks and copies of the trained autoencoder and tokenizer."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(vae, folder / "vae", dirs_exist_ok=True)
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    FlowMatchEulerDiscreteScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    new_transformer().save_pretrained(folder / "transformer")
    text_encoder = new_text_encoder(Qwen2Tokenizer.from_pretrained(tokenizer))
    text_encoder.save_pretrained(folder / "text_encoder")
    index = {"_class_name": "QwenImagePipeline", "_diffusers_version": diffusers.__version__}
    index |= {name: list(source) for name, source in COMPONENTS.items()}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
