"""A training of each tool that `dsctl import` reads, written for these tests, by the names of its files."""

from __future__ import annotations

DIFFSYNTH = {
    "train.sh": r"""#!/bin/bash
# A LoRA.
modelscope download --dataset OWNER/set --local_dir ./data
export DIFFSYNTH_SKIP_DOWNLOAD=True
RANK=16
FLAGS="--use_gradient_checkpointing --find_unused_parameters"
CUDA_VISIBLE_DEVICES=0 accelerate launch --num_processes 2 examples/model_training/train.py \
  --dataset_base_path "data" --dataset_metadata_path data/metadata.csv \
  --max_pixels 1048576 --dataset_repeat 50 \
  --model_id_with_origin_paths "Qwen/Qwen-Image:transformer/*.safetensors,Qwen/Qwen-Image:text_encoder/*.safetensors,\
Qwen/Qwen-Image:vae/*.safetensors" \
  --learning_rate 1e-4 --num_epochs 1 --num_epochs 5 $FLAGS \
  --remove_prefix_in_ckpt "pipe.dit." --output_path "./runs/${NAME:-a}" \
  --lora_base_model "dit" --lora_target_modules "to_q,to_k" --lora_rank $RANK --initialize_model_on_cpu
"""
}
AI_TOOLKIT = {
    "dog.yaml": """---
job: extension
config:
  name: dog
  process:
    - type: sd_trainer
      training_folder: runs
      device: cuda:0
      trigger_word: zqdog
      network: {type: lora, linear: 16, linear_alpha: 8}
      save: {dtype: float16, save_every: 250, max_step_saves_to_keep: 4}
      datasets:
        - folder_path: data
          caption_ext: txt
          caption_dropout_rate: 0.05
          shuffle_tokens: false
          resolution: [512, 1000]
        - folder_path: more
      train:
        batch_size: 2
        steps: 2000
        gradient_checkpointing: true
        noise_scheduler: flowmatch
        timestep_type: linear
        optimizer: adamw8bit
        optimizer_params: {weight_decay: 1e-4}
        lr: 1e-4
        ema_config: {use_ema: true, ema_decay: 0.99}
        dtype: bf16
        mystery: [1, {deep: 2}]
      model:
        name_or_path: tongyi-mai/z-image
        quantize: true
        qtype: qfloat8
        quantize_te: true
        qtype_te: uint4
      sample:
        sample_every: 250
        width: 1024
        height: 1024
        samples: [{prompt: "[trigger] in snow"}, {prompt: a cat, seed: 3}]
        neg: ""
        guidance_scale: 4
meta: {version: '1.0'}
"""
}
KOHYA = {
    "data.toml": """
[[datasets]]
image_directory = "data"
cache_directory = "cache"
num_repeats = 3
batch_size = 2
[datasets.mystery]
deep = 1
[general]
resolution = [960, 544]
caption_extension = ".txt"
batch_size = 1
enable_bucket = true
""",
    "train.sh": r"""accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16 src/x_train_network.py \
  --dit w/dit.safetensors --vae w/vae.safetensors --text_encoder w/te.safetensors --dataset_config data.toml --sdpa \
  --mixed_precision bf16 --timestep_sampling shift --weighting_scheme none --discrete_flow_shift 2.2 \
  --optimizer_type adamw8bit --optimizer_args betas=0.9,0.99 weight_decay=0.1 --learning_rate 5e-5 \
  --network_module networks.lora --network_dim 16 --lr_scheduler constant --lr_warmup_steps 10 --max_grad_norm 0 \
  --max_train_epochs 16 --save_every_n_epochs 1 --seed 42 --blocks_to_swap 8 --fp8_base \
  --output_dir out --output_name dog
""",
}
KOHYA_ARGUMENTS = {
    "args.toml": """
pretrained_model_name_or_path = "black-forest-labs/FLUX.1-dev"
[network_arguments]
network_module = "networks.lora"
network_dim = 8
network_alpha = 4
[training]
max_train_steps = 900
optimizer_type = "Prodigy"
learning_rate = 1.0
timestep_sampling = "sigmoid"
sample_every_n_steps = 100
guidance_scale = 1.0
output_dir = "out"
dataset_config = "data.toml"
huggingface_token = "hf_secret"
""",
    "data.toml": """
[[datasets]]
resolution = 512
[[datasets.subsets]]
image_dir = "data"
num_repeats = 2
class_tokens = "a dog"
""",
}
DIFFUSION_PIPE = {
    "main.toml": """
output_dir = 'out'
dataset = 'set.toml'
epochs = 10
micro_batch_size_per_gpu = 1
pipeline_stages = 1
gradient_accumulation_steps = 4
warmup_steps = 100
save_every_n_epochs = 2
activation_checkpointing = 'unsloth'
save_dtype = 'bfloat16'
eval_datasets = [{name = 'a', config = 'b.toml'}]
[model]
type = 'wan'
ckpt_path = '/models/Wan2.1-T2V-1.3B'
dtype = 'bfloat16'
transformer_dtype = 'float8'
[adapter]
type = 'lora'
rank = 32
dtype = 'bfloat16'
[optimizer]
type = 'adamw_optimi'
lr = 2e-5
betas = [0.9, 0.99]
eps = 1e-8
[monitoring]
enable_wandb = true
wandb_api_key = 'wb_secret'
wandb_tracker_name = 'mine'
""",
    "set.toml": """
resolutions = [[1280, 720]]
enable_ar_bucket = true
min_ar = 0.5
frame_buckets = [1, 33]
[[directory]]
path = 'clips'
num_repeats = 5
""",
}
EXAMPLES = {
    "diffsynth": DIFFSYNTH,
    "ai-toolkit": AI_TOOLKIT,
    "kohya": KOHYA,
    "kohya with arguments in TOML": KOHYA_ARGUMENTS,
    "diffusion-pipe": DIFFUSION_PIPE,
}
