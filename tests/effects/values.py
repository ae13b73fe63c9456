"""A value for every option of every command that is not its default, beside a command line that works."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, get_origin

from dsctl_core.options.messages import bare_type
from tests.effects.tries import Command, Options, Tries, Try

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

PARTS = ("transformer", "text_encoder", "vae")
FILES: Options = {"model": None, "tokenizer_path": "./tiny/tokenizer"}
IDS = ",".join(f"own/other:{part}/*.safetensors" for part in PARTS)
PATHS = json.dumps([f"other/{part}" for part in PARTS])
MODEL: Tries = {
    "model": "./other",
    "model_paths": Try(PATHS, {}, {"model": None}),
    "model_id_with_origin_paths": Try(IDS, {}, {"model": None}),
    "tokenizer_path": "./other/tokenizer",
}
READING: Tries = {
    "data_file_keys": "image,second",
    "column": "prompt=other",
    "height": Try("16", also={"width": "16"}),
    "width": Try("32", also={"height": "16"}),
    "max_pixels": "256",
    "bucket_resolutions": "16",
}
DATA: Tries = {
    **READING,
    "dataset_base_path": "more",
    "dataset": Try('{"path": "more"}', also={"dataset_base_path": None}),
    "dataset_config": Try("datasets.toml", also={"dataset_base_path": None}),
    "dataset_metadata_path": "data/one.csv",
    "extra_inputs": "edit_image",
    "caption_prefix": "zq ",
    "caption_suffix": " in oil",
    "caption_dropout": "1",
}
TEMPLATE: Tries = {
    "template": Try("words", also={"trust_template": True}),
    "trust_template": Try(True, {"template": "words"}),
}
SAMPLES: Options = {"sample_every": "2", "sample_height": "32", "sample_width": "32", "sample_steps": "1"}
SIZE: Options = {"height": "32", "width": "32"}

TRAIN = Command(
    {
        "model": "./tiny",
        "dataset_base_path": "data",
        "lora_rank": "2",
        "max_steps": "4",
        "output_path": "out",
        "device": "cpu",
    },
    {
        **MODEL,
        **DATA,
        **TEMPLATE,
        "controlnet": Try("edges.safetensors", {"dataset_metadata_path": "data/control.csv"}),
        "task": "direct_distill",
        "from_cache": Try("cache", also={"model": None, "dataset_base_path": None}),
        "cache": Try(False, {"max_steps": "4"}),
        "trainable_models": "vae",
        "num_epochs": Try("2", {"max_steps": None}),
        "use_gradient_checkpointing_offload": Try(True, {"use_gradient_checkpointing": True}),
        "mixed_precision": "bf16",
        "fp8_models": "text_encoder",
        "quantize": "text_encoder=int8",
        "device": "cuda",
        "lora_rank": "3",
        "network": "loha",
        "lokr_factor": Try("4", {"network": "lokr"}),
        "lokr_decompose_both": Try(True, {"network": "lokr"}),
        "lokr_full_matrix": Try(True, {"network": "lokr", "lora_rank": None}),
        "lora_base_model": "text_encoder",
        "lora_target_modules": "to_k",
        "lora_checkpoint": Try("lora.safetensors", {"lora_target_modules": "to_q"}),
        "preset_lora_path": "lora.safetensors",
        "preset_lora_model": Try("text_encoder", {"preset_lora_path": "lora.safetensors"}),
        "lora": "lora.safetensors:0.5",
        "trigger_words": "zq",
        "optimizer": Try("sgd", {"learning_rate": "0.01"}),
        "optimizer_args": "eps=1e-6",
        "learning_rate": "0.02",
        "lr_warmup_steps": Try("2", {"lr_scheduler": "linear"}),
        "lr_num_cycles": Try("3", {"lr_scheduler": "cosine_with_restarts", "max_steps": "40"}),
        "lr_power": Try("2", {"lr_scheduler": "polynomial"}),
        "logit_mean": Try("0.5", {"timestep_sampling": "logit_normal"}),
        "logit_std": Try("2", {"timestep_sampling": "logit_normal"}),
        "max_timestep_boundary": "0.5",
        "fit": "24",
        "find_unused_parameters": False,
        "group_by_prompt_length": Try(True, {"batch_size": "2"}),
        "gradient_checkpointing_blocks": Try("1", {"use_gradient_checkpointing": True}),
        "attention_backend": "_native_math",
        "track": "csv",
        "track_project": Try("mine", {"track": "tensorboard"}),
        "sample_every": Try("2", also=SAMPLES),
        "sample_prompt": Try("a cat", SAMPLES),
        "sample_prompts_file": Try("prompts.txt", SAMPLES),
        "sample_negative_prompt": Try("grey", {**SAMPLES, "sample_cfg_scale": "2"}),
        "sample_height": Try("16", SAMPLES),
        "sample_width": Try("16", SAMPLES),
        "sample_steps": Try("2", SAMPLES),
        "sample_cfg_scale": Try("3", SAMPLES),
        "sample_seed": Try("1", SAMPLES),
        "validation_every": Try("2", {"validation_split": "0.5"}),
        "accelerate_config": "accelerate.yaml",
        "output_path": "elsewhere",
        "mirror": "memory://mirror/of",
        "dry_run_nodes": Try("2", {"dry_run": True}),
        "remove_prefix_in_ckpt": "pipe.dit.",
        "resume": "latest",
        "allow_changed": "seed",
    },
    {
        "on_bad_sample": "all rows can be used here; with one that cannot, tests of bad rows show it",
        "recheck": "files are read though they have not changed; tests of what is remembered count them",
    },
)
CACHE = Command(
    {"model": "./tiny", "dataset_base_path": "data", "output_path": "out", "device": "cpu"},
    {
        **MODEL,
        **DATA,
        **TEMPLATE,
        "controlnet": Try("edges.safetensors", {"dataset_metadata_path": "data/control.csv"}),
        "output_path": "elsewhere",
        "dry_run_nodes": Try("2", {"dry_run": True}),
        "task": "direct_distill",
        "trainable_models": "vae",
        "mixed_precision": "bf16",
        "fp8_models": "text_encoder",
        "quantize": "text_encoder=int8",
        "device": "cuda",
    },
    {"shared": "a worker alone makes the cache of a plain command; tests of shared work show several"},
)
VACE: Tries = {"vace_video": "clips/a.gif", "vace_reference_image": "data/0.png", "vace_scale": "0.5"}
INFER = Command(
    {"model": "./tiny", "prompt": "a cat", **SIZE, "num_inference_steps": "2", "output": "out.png", "device": "cpu"},
    {
        **MODEL,
        "template": Try("brightness", also={"trust_template": True, "template_inputs": '{"scale": 0.5}'}),
        "trust_template": Try(True, {"template": "brightness", "template_inputs": '{"scale": 0.5}'}),
        "template_inputs": Try(
            '{"scale": 0.9}', {"template": "brightness", "trust_template": True, "template_inputs": '{"scale": 0.5}'}
        ),
        "negative_template_inputs": Try(
            '{"scale": 0.1}',
            {"template": "brightness", "trust_template": True, "template_inputs": '{"scale": 0.5}'},
            {"cfg_scale": "2"},
        ),
        "controlnet": Try("edges.safetensors", also={"control_image": "data/0.png"}),
        "control_image": Try("data/1.png", {"controlnet": "edges.safetensors", "control_image": "data/0.png"}),
        "control_mask": Try(
            "mask.png",
            {"controlnet": "repair.safetensors", "control_image": "data/0.png", "control_mask": "data/1.png"},
        ),
        "prompt": "a dog",
        "prompts_file": Try("prompts.txt", also={"prompt": None}),
        "negative_prompt": Try("grey", {"cfg_scale": "3"}),
        "cfg_scale": "3",
        "quantize": "dit=int8",
        "lora": "lora.safetensors",
        "height": "48",
        "width": "48",
        "num_inference_steps": "1",
        "input_image": Try("data/0.png", also={"denoising_strength": "0.5"}),
        "denoising_strength": Try("0.5", {"input_image": "data/0.png", "denoising_strength": "0.9"}),
        "inpaint_mask": Try("mask.png", {"input_image": "data/0.png", "denoising_strength": "0.5"}),
        "solver": "unipc",
        "end_image": "data/0.png",
        "input_video": Try("clips/a.gif", also={"denoising_strength": "0.5"}),
        "edit_image": "data/0.png",
        **VACE,
        "vace_video_mask": Try("mask.png", also={"vace_video": "clips/a.gif"}),
        "trained_part": "part.safetensors",
        "output": "elsewhere.png",
        "dtype": "bfloat16",
        "device": "cuda",
    },
)
VALIDATE = Command(
    {"path": "data"},
    {
        **READING,
        "path": "more",
        "metadata": "data/one.csv",
        "model": "tiny",
        "report": "out.html",
        "num_frames": Try("9", {"path": "clips"}),
        "allow_outside": Try(True, {"path": "outside"}),
        "strict": Try(True, {"path": "twice"}),
        "fps": Try("500", {"path": "clips"}),
        "short_clips": Try("shorten", {"path": "clips", "num_frames": "9"}),
        "clip_extraction": Try("uniform", {"path": "clips"}),
    },
    {
        "workers": "how many processes decode; what they find is the same",
        "recheck": "files are decoded though they have not changed; what is found is the same",
    },
)
ANNOTATE = Command(
    {"path": "data", "kind": "gray"},
    {
        "path": "more",
        "kind": "tile",
        "annotator": "depth-model",
        "detector": "detection-model",
        "metadata": "data/one.csv",
    },
)
CAPTION = Command(
    {"path": "bare", "model": "./tiny", "max_tokens": "4", "device": "cpu"},
    {
        "path": "data",
        "model": "./other",
        "captioner": Try("captioner", also={"model": None}),
        "prompt": "what is it?",
        "trigger_word": "zq",
        "all": True,
        "output": "out.csv",
        "metadata": Try("data/one.csv", {"path": "data", "all": True}),
        "file_column": Try("second", {"path": "data", "all": True}),
        "num_frames": Try("2", {"path": "clips", "all": True}),
        "max_pixels": "784",
        "temperature": "5",
        "seed": Try("3", {"temperature": "5"}),
        "dtype": "bfloat16",
        "device": "cuda",
    },
    {"batch_size": "how many files are described at once; what is said of each is the same"},
)
LORA: Options = {"output": "out.safetensors"}
ANY_MODEL: Tries = {"model": "./tiny", "model_paths": PATHS, "model_id_with_origin_paths": IDS}
FLAT: Options = {"file": "kohya.safetensors", "model": "./tiny"}
MERGE = Command(
    {"model": "./tiny", "lora": "lora.safetensors", "output": "out"},
    {
        **MODEL,
        "lora": "lora.safetensors:0.5",
        "into": Try("lora", {}, {"output": "out.safetensors"}),
        "rank": Try("1", {"into": "lora", "output": "out.safetensors"}),
        "lora_format": Try("comfyui", {"into": "lora", "output": "out.safetensors"}),
        "lora_dtype": Try("bfloat16", {"into": "lora", "output": "out.safetensors"}),
        "allow_partial": Try(True, {"lora": "partial.safetensors"}),
        "trained_part": "part.safetensors",
        "output": "elsewhere",
    },
)
WRITTEN: Tries = {
    "output": "elsewhere.safetensors",
    "lora_dtype": "bfloat16",
    "file": "partial.safetensors",
    # Of layers without dots only those of the model that is named can be told apart.
    "model": Try("./tiny", {"file": "kohya.safetensors"}),
    "model_paths": Try(PATHS, {"file": "kohya.safetensors"}),
    "model_id_with_origin_paths": Try(IDS, {"file": "kohya.safetensors"}),
}
CONVERT = Command({"file": "lora.safetensors", "to": "diffusers", **LORA}, {**WRITTEN, "to": "comfyui"})
RESIZE = Command({"file": "lora.safetensors", "rank": "1", **LORA}, {**WRITTEN, "rank": "2", "lora_format": "comfyui"})
EXTRACT = Command(
    {"base": "./tiny", "tuned": "./other", "rank": "1", **LORA},
    {
        "base": Try("./other", {"tuned": "./tiny/transformer"}, {}),
        "tuned": "./tiny",
        "component": "text_encoder",
        "target_modules": "to_q",
        "rank": "2",
        "lora_format": "comfyui",
        "lora_dtype": "bfloat16",
        "output": "elsewhere.safetensors",
    },
)
TRUSTED: Tries = {"trust_template": Try(True, {"trust_template": None})}
GIVEN: Options = {"template_inputs": '{"scale": 0.5}', "trust_template": True, "model": "./tiny"}
CHECK = Command(
    {"template": "brightness", **GIVEN},
    {"template": "words", "model": "./other", "template_inputs": '{"scal": 0.9}', **TRUSTED},
)
INIT = Command({"name": "out"}, {"name": "elsewhere", "model": "./tiny"})
PACK = Command(
    {"folder": "brightness", "checkpoint": "brightness.safetensors", "output": "out", **GIVEN},
    {
        "folder": "words",
        "checkpoint": "lora.safetensors",
        "output": "elsewhere",
        **TRUSTED,
        "license": "mit",
        "model": "./data",
        "template_inputs": '{"scale": 0.9}',
    },
)
PUT: Tries = {"repo": "own/thing", "revision": "v1", "token": "secret", "target": "huggingface"}
UPLOAD = Command({"path": "lora.safetensors", "repo": "own/name"}, {**PUT, "path": "partial.safetensors"})
TEMPLATE_UPLOAD = Command(
    {"path": "packed", "repo": "own/name", "trust_template": True}, {**PUT, **TRUSTED, "path": "brightness"}
)
DOWNLOAD = Command(
    {"what": "own/name"},
    {
        "what": "own/more",
        "source": "huggingface",
        "include": "*.json",
        "exclude": "*.json",
        "revision": "v1",
        "local_dir": "out",
        "token": "secret",
    },
)
SHOW = Command(
    {"name": "qwen-image"},
    {"name": "tiny", "trainable_models": Try("text_encoder", {"graph": True})},
)
REPORT = Command({"runs": "run"}, {"runs": ("run", "again"), "output": "out.html", "csv": "out.csv"})

IMPORT = Command({"files": "train.sh"}, {"files": "other.sh", "output": "elsewhere.toml"})
START = Command({"folder": "data", "model": "tiny"}, {"folder": "more", "model": "./other", "output": "elsewhere.toml"})

COMMANDS: dict[str, Command] = {
    "init": START,
    "download": DOWNLOAD,
    "upload": UPLOAD,
    "train": TRAIN,
    "cache": CACHE,
    "report": REPORT,
    "infer": INFER,
    "import": IMPORT,
    "dataset validate": VALIDATE,
    "dataset annotate": ANNOTATE,
    "dataset caption": CAPTION,
    "merge-lora": MERGE,
    "lora info": Command({"file": "lora.safetensors"}, {"file": "partial.safetensors"}),
    "lora convert": CONVERT,
    "lora resize": RESIZE,
    "lora extract": EXTRACT,
    "template init": INIT,
    "template check": CHECK,
    "template pack": PACK,
    "template upload": TEMPLATE_UPLOAD,
    "models list": Command({}),
    "models show": SHOW,
    "doctor": Command({}),
}


def is_positional_list(info: FieldInfo) -> bool:
    """Return whether several values of a positional option are several words."""
    return get_origin(bare_type(info.annotation)) is tuple


def words_of(name: str, value: Any, positional: bool) -> list[str]:
    """Return an option with its value as it stands on the command line."""
    if value is None:
        return []
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    texts = list(value) if isinstance(value, tuple) else [value]
    return texts if positional else [f"--{flag}={text}" for text in texts]
