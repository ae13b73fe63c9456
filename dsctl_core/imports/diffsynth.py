"""DiffSynth-Studio: a training command, `accelerate launch .../train.py`, whose flags are mostly dsctl's own."""

from __future__ import annotations

from typing import Any

from dsctl_core.imports.draft import Draft, Setting, Unfit
from dsctl_core.imports.presets import preset_of_ids
from dsctl_core.imports.rules import Table, always, lost, switch, to
from dsctl_core.options.train import TASKS

TOOL = "DiffSynth-Studio"
# Flags that only its training commands have, by which they are recognized.
SIGNS = {"dataset_base_path", "model_id_with_origin_paths", "model_paths"}


def _task(value: Any) -> Any:
    if value not in TASKS:
        raise Unfit(f"the tasks of dsctl are {', '.join(TASKS)}")
    return value


def _weights(draft: Draft, setting: Setting) -> None:
    """Name the preset with these weights, for which not even a dry run needs a download, or else the weights."""
    preset = preset_of_ids(str(setting.value))
    if preset is not None and "model_paths" not in draft.options:
        draft.set("model", preset.name, setting)
    else:
        draft.set("model_id_with_origin_paths", setting.value, setting)


SAME = (
    *("dataset_base_path", "dataset_metadata_path", "dataset_repeat", "dataset_num_workers", "data_file_keys"),
    *("height", "width", "max_pixels", "num_frames", "model_paths", "extra_inputs", "fp8_models"),
    *("learning_rate", "num_epochs", "trainable_models", "weight_decay", "output_path", "remove_prefix_in_ckpt"),
    *("save_steps", "lora_base_model", "lora_target_modules", "lora_rank", "lora_checkpoint", "preset_lora_path"),
    *("preset_lora_model", "gradient_accumulation_steps", "max_timestep_boundary", "min_timestep_boundary"),
    *("tokenizer_path", "seed"),
)
SWITCHES = ("use_gradient_checkpointing", "use_gradient_checkpointing_offload", "find_unused_parameters")
TABLE: Table = {
    **{name: to(name) for name in SAME},
    **{name: switch(name) for name in SWITCHES},
    "task": to("task", _task),
    "model_id_with_origin_paths": _weights,
    "template_model_id_or_path": to("template"),
    "enable_lora_hot_loading": always("the LoRA of a template is applied for one call"),
    "enable_model_cpu_offload": lost("offload_blocks = N holds N blocks of the denoiser in main memory"),
    "offload_models": lost("offload_blocks = N holds N blocks of the denoiser in main memory"),
    "resume_from_checkpoint": lost("dsctl goes on with a run of its own: --resume latest"),
    # Of accelerate launch.
    "accelerate.config_file": to("accelerate_config"),
    "accelerate.num_processes": to("num_processes"),
    "accelerate.mixed_precision": to("mixed_precision"),
    "accelerate.num_machines": always("one machine without a file of accelerate", "1"),
    "accelerate.main_process_port": lost("accelerate finds a free port"),
    "accelerate.gpu_ids": lost("set CUDA_VISIBLE_DEVICES"),
}


def finish(draft: Draft) -> None:
    """Add what DiffSynth-Studio does by default and dsctl does not."""
    names = draft.options.get("lora_target_modules")
    if "lora_base_model" not in draft.options:
        for name in ("lora_rank", "lora_target_modules"):
            if name in draft.options:
                draft.drop(name, "without lora_base_model, DiffSynth-Studio trains no LoRA")
    elif names is not None and "lora_rank" not in draft.options:
        draft.default("lora_rank", 32, f"the rank of {TOOL} where none is given")
    draft.default("learning_rate", 1e-4, f"the rate of {TOOL} where none is given")
    if "trainable_models" not in draft.options and "lora_base_model" not in draft.options:
        draft.note("neither trainable_models nor lora_base_model is in the command: it trains nothing")
    if "template" in draft.options:
        draft.note("the code of a template runs only with --trust-template: read it first")
    draft.note('timestep_sampling = "diffsynth" would draw noise levels from the very table of DiffSynth-Studio')
