"""Makes the folder that the video model's training starts from: all components in the layout of diffusers.

The transformer and the text encoder start from random numbers; the autoencoder and the tokenizer are made already.
"""

import json
import shutil
from pathlib import Path

import diffusers
import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from torch import nn
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from video_tokenizer import VOCABULARY

TEXT_WIDTH, TEXT_TOKENS = 128, 512
TRANSFORMER = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 42,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 128,
    "ffn_dim": 512,
    "num_layers": 5,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 64,
}
TEXT_ENCODER = {
    "vocab_size": VOCABULARY,
    "d_model": TEXT_WIDTH,
    "d_kv": 32,
    "d_ff": 256,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
}
SCHEDULER = {
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "num_train_timesteps": 1000,
    "flow_shift": 3.0,
}
COMPONENTS = {
    "scheduler": ("diffusers", "UniPCMultistepScheduler"),
    "text_encoder": ("transformers", "UMT5EncoderModel"),
    "tokenizer": ("transformers", "T5Tokenizer"),
    "transformer": ("diffusers", "WanTransformer3DModel"),
    "vae": ("diffusers", "AutoencoderKLWan"),
}


@torch.no_grad()
def new_transformer() -> WanTransformer3DModel:
    """Make the transformer; its blocks start as identities and its output as zero."""
    model = WanTransformer3DModel(**TRANSFORMER)
    closed = [model.proj_out, model.condition_embedder.time_proj]
    for block in model.blocks:
        closed.append(block.attn2.to_out[0])  # the one part of a block without a gate
        block.scale_shift_table.zero_()
    for layer in closed:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    model.scale_shift_table.zero_()
    return model


def new_text_encoder(tokenizer: T5Tokenizer) -> UMT5EncoderModel:
    """Make the text encoder."""
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    return UMT5EncoderModel(UMT5Config(**TEXT_ENCODER, **ids))


def prepare(folder: Path, vae: Path, tokenizer: Path, seed: int = 0) -> None:
    """Write a folder with new networks and copies of the trained autoencoder and of the tokenizer."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(vae, folder / "vae", dirs_exist_ok=True)
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    UniPCMultistepScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    new_transformer().save_pretrained(folder / "transformer")
    new_text_encoder(T5Tokenizer.from_pretrained(tokenizer)).save_pretrained(folder / "text_encoder")
    index = {"_class_name": "WanPipeline", "_diffusers_version": diffusers.__version__}
    index |= {name: list(source) for name, source in COMPONENTS.items()}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
