"""Tiny random models of the families that exist for tests alone, and the way to have them found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dsctl_core.families import add_families, families, remove_families
from tests.tiny_models import embedded_tokenizer, randomize

FOLDER = Path(__file__).parent
NETWORKS = "dsctl_core.families.dawn.networks"


@contextmanager
def added_families() -> Iterator[None]:
    """Have the families of this folder found in the block, as another package would have its own found."""
    outer = "dawn" in families()
    add_families(FOLDER)
    try:
        yield
    finally:
        if not outer:
            remove_families(FOLDER)


def write_dawn(folder: Path, *, boundary: float | None = 0.875, sees: bool = True, seed: int = 0) -> Path:
    """Write a tiny Dawn: with a `boundary` it has two denoisers, and if it `sees` an image encoder."""
    from diffusers import AutoencoderKLWan
    from dsctl_core.families.dawn.networks import DawnTransformer  # type: ignore[import-not-found]
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, T5Config, T5EncoderModel

    generator = torch.Generator().manual_seed(seed)
    blocks = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1, "attn_scales": []}
    text = T5Config(vocab_size=2048, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=2)
    parts = {
        "transformer": randomize(DawnTransformer(), generator),
        "vae": randomize(AutoencoderKLWan(**blocks, temperal_downsample=[False, True, True]), generator),
        "text_encoder": randomize(T5EncoderModel(text), generator),
    }
    if boundary is not None:
        parts["transformer_2"] = randomize(DawnTransformer(), generator)
    if sees:
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        parts["image_encoder"] = randomize(
            CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=16)), generator
        )
        processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        processor.save_pretrained(folder / "processor")
    for name, model in parts.items():
        model.save_pretrained(folder / name)
    shutil.copytree(embedded_tokenizer(), folder / "tokenizer")
    index = {"_class_name": "DawnPipeline", "boundary_ratio": boundary}
    index |= {name: ["diffusers", type(model).__name__] for name, model in parts.items()}
    index |= {name: [None, None] for name in ("transformer_2", "image_encoder") if name not in parts}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
