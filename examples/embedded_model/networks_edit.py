"""Makes the folder that the training of edits starts from: the trained networks, and a vision tower of random numbers.

The model is of the kind of Qwen-Image-Edit-2511: its text encoder sees the pictures in front of the
instruction, and its transformer reads their latents, modulated as free of noise (`zero_cond_t`).
"""

import copy
import json
import shutil
from pathlib import Path

import diffusers
import torch
from diffusers import QwenImageTransformer2DModel
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from networks import COMPONENTS, TEXT_WIDTH
from scenes import SIZE

VISION = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "out_hidden_size": TEXT_WIDTH,
    "fullatt_block_indexes": [1],
}
# Pictures reach the vision tower and the autoencoder in the only size that this world has.
SETTINGS = {"reference_pixels": SIZE * SIZE, "prompt_pixels": SIZE * SIZE}


def prepare_edit(folder: Path, start: Path, seed: int = 0) -> None:
    """Write a folder for editing with the networks of the text-to-image model in `start`."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("vae", "tokenizer", "scheduler"):
        shutil.copytree(start / name, folder / name, dirs_exist_ok=True)
    transformer = QwenImageTransformer2DModel.from_pretrained(start / "transformer").float()
    transformer.register_to_config(zero_cond_t=True)
    transformer.save_pretrained(folder / "transformer")
    with_new_vision_tower(start / "text_encoder").save_pretrained(folder / "text_encoder")
    side = 28  # pixels of a token's side
    sizes = {"shortest_edge": side * side, "longest_edge": 4 * SIZE * SIZE}
    Qwen2VLImageProcessorPil(size=sizes).save_pretrained(folder / "processor")
    index = {"_class_name": "QwenImageEditPlusPipeline", "_diffusers_version": diffusers.__version__}
    index |= {name: list(source) for name, source in COMPONENTS.items()}
    index |= {"processor": ["transformers", "Qwen2VLProcessor"], **SETTINGS}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def with_new_vision_tower(start: Path) -> Qwen2_5_VLForConditionalGeneration:
    """Return the text encoder in `start` with a vision tower of the sizes in `VISION`."""
    trained = Qwen2_5_VLForConditionalGeneration.from_pretrained(start).float()
    config = copy.deepcopy(trained.config)
    for name, value in VISION.items():
        setattr(config.vision_config, name, value)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.model.language_model.load_state_dict(trained.model.language_model.state_dict())
    model.tie_weights()
    return model
