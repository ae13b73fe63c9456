"""Trainings of several datasets for each tool, written for these tests; MODEL stands for a folder of a small model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

AI_TOOLKIT = {
    "several.yaml": """
job: extension
config:
  name: several
  process:
    - type: sd_trainer
      training_folder: out
      trigger_word: zqdog
      network: {type: lora, linear: 2, linear_alpha: 2}
      datasets:
        - {folder_path: photos, resolution: [64], num_repeats: 3, caption_dropout_rate: 0.1, loss_multiplier: 0.5}
        - {folder_path: cut_out, resolution: [64, 96], alpha_mask: true, mask_min_value: 0.1, mask_path: masks}
        - {folder_path: dogs/photos, is_reg: true, default_caption: a dog, fps: 16, shuffle_tokens: true}
      train: {batch_size: 1, steps: 2, noise_scheduler: flowmatch, lr: 1e-3, reg_weight: 0.25}
      model: {name_or_path: MODEL}
      sample: {sample_every: 2, width: 64, height: 64, sample_steps: 1, guidance_scale: 1, prompts: ["[trigger] runs"]}
"""
}
MUSUBI = {
    "train.sh": """python qwen_image_train_network.py --dit MODEL/transformer --vae MODEL/vae \\
  --text_encoder MODEL/text_encoder --dataset_config several.toml \\
  --network_module networks.lora --network_dim 2 --max_train_steps 2 --timestep_sampling shift \\
  --discrete_flow_shift 2.2 --learning_rate 1e-3 --output_dir out --output_name several
""",
    "several.toml": """
[general]
resolution = [64, 64]
batch_size = 1
enable_bucket = true
caption_extension = ".txt"
[[datasets]]
image_directory = "photos"
num_repeats = 2
[[datasets]]
image_jsonl_file = "listed/all.jsonl"
resolution = [96, 96]
batch_size = 4
control_directory = "nowhere"
""",
}
MUSUBI_VIDEO = {
    "train.sh": """python wan_train_network.py --dit MODEL/transformer --vae MODEL/vae --t5 MODEL/text_encoder \\
  --dataset_config several.toml --network_module networks.lora_wan --network_dim 2 --max_train_steps 2 \\
  --timestep_sampling uniform --learning_rate 1e-3 --output_dir out --output_name several
""",
    "several.toml": """
[general]
resolution = [64, 64]
enable_bucket = true
[[datasets]]
video_directory = "clips"
target_frames = [1, 5]
[[datasets]]
image_jsonl_file = "listed/all.jsonl"
""",
}
SD_SCRIPTS = {
    "args.toml": """
pretrained_model_name_or_path = "MODEL"
network_module = "networks.lora"
network_dim = 2
max_train_steps = 2
learning_rate = 1e-3
prior_loss_weight = 0.5
timestep_sampling = "sigmoid"
output_dir = "out"
dataset_config = "several.toml"
""",
    "several.toml": """
[general]
caption_dropout_rate = 0.1
[[datasets]]
resolution = 64
batch_size = 1
  [[datasets.subsets]]
  image_dir = "photos"
  caption_prefix = "zqdog,"
  num_repeats = 2
  [[datasets.subsets]]
  image_dir = "cut_out"
  alpha_mask = true
  conditioning_data_dir = "masks"
[[datasets]]
resolution = [96, 64]
batch_size = 1
  [[datasets.subsets]]
  image_dir = "dogs/photos"
  is_reg = true
  class_tokens = "a dog"
""",
}
DIFFUSION_PIPE = {
    "main.toml": """
output_dir = 'out'
dataset = 'several.toml'
max_steps = 2
micro_batch_size_per_gpu = 1
pipeline_stages = 1
[model]
type = 'qwen_image'
diffusers_path = 'MODEL'
dtype = 'float32'
[adapter]
type = 'lora'
rank = 2
[optimizer]
type = 'adamw'
lr = 1e-3
""",
    "several.toml": """
resolutions = [64]
enable_ar_bucket = true
frame_buckets = [1]
caption_prefix = 'all '
[[directory]]
path = 'photos'
num_repeats = 5
caption_prefix = 'zqdog '
[[directory]]
path = 'cut_out'
resolutions = [96]
mask_path = 'masks'
""",
}

# By tool: the files, which model, the tables that follow, and what has no counterpart.
Expected = tuple[dict[str, str], str, list[dict[str, Any]], dict[str, Any]]
SEVERAL: dict[str, Expected] = {
    "ai-toolkit": (
        AI_TOOLKIT,
        "tiny",
        [
            {
                "path": "photos",
                "bucket_resolutions": ["64"],
                "repeat": 3,
                "caption_dropout": 0.1,
                "loss_weight": 0.5,
            },
            {"path": "cut_out", "bucket_resolutions": ["64", "96"], "mask_from_alpha": True},
            {
                "path": "dogs/photos",
                "name": "photos-2",
                "regularization": True,
                "caption": "a dog",
                "bucket_resolutions": ["512"],
                "loss_weight": 0.25,
            },
        ],
        {
            "config.process[0].datasets[1].mask_min_value": 0.1,
            "config.process[0].datasets[1].mask_path": "masks",
            "config.process[0].datasets[2].fps": 16,
            "config.process[0].datasets[2].shuffle_tokens": True,
        },
    ),
    "musubi-tuner": (
        MUSUBI,
        "tiny",
        [
            {"path": "photos", "bucket_resolutions": ["64"], "repeat": 2},
            {
                "path": "listed",
                "metadata": "listed/all.jsonl",
                "column": ["image=image_path", "prompt=caption"],
                "bucket_resolutions": ["96"],
            },
        ],
        {"datasets[1].control_directory": "nowhere", "datasets[1].batch_size": 4},
    ),
    "musubi-tuner with clips": (
        MUSUBI_VIDEO,
        "tiny-video",
        [
            {"path": "clips", "num_frames": 5, "bucket_resolutions": ["64"]},
            {
                "path": "listed",
                "metadata": "listed/all.jsonl",
                "column": ["video=image_path", "prompt=caption"],
                "bucket_resolutions": ["64"],
            },
        ],
        {},
    ),
    "sd-scripts": (
        SD_SCRIPTS,
        "tiny",
        [
            {
                "path": "photos",
                "width": 64,
                "height": 64,
                "repeat": 2,
                "caption_prefix": "zqdog,",
                "caption_dropout": 0.1,
            },
            {"path": "cut_out", "width": 64, "height": 64, "mask_from_alpha": True, "caption_dropout": 0.1},
            {
                "path": "dogs/photos",
                "name": "photos-2",
                "width": 96,
                "height": 64,
                "regularization": True,
                "caption": "a dog",
                "caption_dropout": 0.1,
                "loss_weight": 0.5,
            },
        ],
        {"datasets[0].subsets[1].conditioning_data_dir": "masks"},
    ),
    "diffusion-pipe": (
        DIFFUSION_PIPE,
        "tiny",
        [
            {"path": "photos", "bucket_resolutions": ["64"], "repeat": 5, "caption_prefix": "zqdog "},
            {"path": "cut_out", "bucket_resolutions": ["96"], "caption_prefix": "all "},
        ],
        {"directory[1].mask_path": "masks"},
    ),
}


def write_several(files: dict[str, str], model: Path) -> list[Path]:
    """Write the files of a tool, and the datasets that they name: photos, cut-outs, dogs without captions, clips."""
    for folder in ("photos", "cut_out", "dogs/photos", "listed", "clips"):
        Path(folder).mkdir(parents=True)
        for number in range(2):
            picture = Image.effect_noise((80, 64 + 16 * number), 60).convert("RGB")
            if folder == "cut_out":
                picture.putalpha(Image.new("L", picture.size, 90 + 90 * number))
            if folder == "clips":
                frames = [Image.effect_noise((64, 64), 50).convert("RGB") for _ in range(6)]
                frames[0].save(f"clips/{number}.gif", save_all=True, append_images=frames[1:], duration=62)
            else:
                picture.save(f"{folder}/{number}.png")
            if folder in ("photos", "cut_out", "clips"):
                Path(folder, f"{number}.txt").write_text(f"noise {number}", encoding="utf-8")
    rows = [{"image_path": str(Path(f"listed/{n}.png").absolute()), "caption": f"listed {n}"} for n in range(2)]
    Path("listed/all.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for name, text in files.items():
        Path(name).write_text(text.replace("MODEL", str(model)), encoding="utf-8")
    return [Path(name) for name in files]
