"""musubi-tuner and sd-scripts of kohya: a dataset in TOML, and arguments as a command or in TOML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsctl_core.imports.datasets import alpha_mask, caption_of_all, regularization, tables_in, weigh_regularization
from dsctl_core.imports.draft import Draft, Setting, TableDraft, Unfit, Wrong, flattened, refuse_wrong
from dsctl_core.imports.presets import set_model
from dsctl_core.imports.rules import (
    DTYPES,
    FALSE,
    PRECISIONS,
    Table,
    adds,
    always,
    aside,
    gradient_norm,
    lost,
    number,
    number_of,
    off,
    one_of,
    optimizer,
    set_alpha,
    set_buckets,
    switch,
    to,
)

TOOL = "kohya's trainers (musubi-tuner, sd-scripts)"
# Arguments by which a command or a TOML file is recognized.
SIGNS = {"dataset_config", "network_module", "network_dim", "max_train_epochs", "max_train_steps"}
SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
WEIGHTS = ("dit", "vae", "text_encoder", "text_encoder1", "text_encoder2", "t5", "t5xxl", "clip", "clip_l", "ae")
STEPS = 1600  # where neither steps nor epochs are given
CACHED = "latents and prompts are encoded once where samples repeat"
ATTENTION = "attention is torch's own; others by attention_backend, under diffusers' names"


def _videos(draft: Draft, setting: Setting) -> None:
    draft.set("dataset_base_path", setting.value, setting)
    draft.default("data_file_keys", ["video"], "the folder is one of videos")


def _table(kind: str) -> Any:
    def rule(draft: Draft, setting: Setting) -> None:
        folder = str(setting.value).rpartition("/")[0] or "."
        draft.set("dataset_metadata_path", setting.value, setting)
        draft.default("dataset_base_path", folder, "it is the folder of the table")
        draft.default("column", [f"{kind}={kind}_path", "prompt=caption"], "the names of its columns")
        draft.default("data_file_keys", [kind], "the column with the files")
        draft.default("allow_outside", True, "its paths may lead out of the folder")

    return rule


def _frames(draft: Draft, setting: Setting) -> None:
    counts = setting.value if isinstance(setting.value, list) else [setting.value]
    if not counts or not all(type(count) is int for count in counts):
        raise Wrong("no list of numbers of frames")
    draft.set("num_frames", max(counts), setting)
    if len(counts) > 1:
        draft.note(f"of {setting.key} = {counts}, the largest is num_frames: a run has one number")


def _arguments(draft: Draft, setting: Setting) -> None:
    """Take `optimizer_args`, a list of NAME=VALUE or one text with spaces between them."""
    entries = setting.value if isinstance(setting.value, list) else str(setting.value).split()
    kept = [str(entry) for entry in entries if not str(entry).startswith("weight_decay=")]
    decay = [str(entry).partition("=")[2] for entry in entries if str(entry).startswith("weight_decay=")]
    if decay:
        draft.set("weight_decay", number(decay[-1]), *([] if kept else [setting]))
    if kept:
        draft.set("optimizer_args", [_with_brackets(each) for each in kept], setting)


def _with_brackets(argument: str) -> str:
    """Return NAME=VALUE with brackets around several values, which kohya's trainers may do without."""
    name, _, value = argument.partition("=")
    return f"{name}=({value})" if "," in value and value[0] not in "([" else argument


def _wandb(draft: Draft, setting: Setting) -> None:
    if setting.value not in ("tensorboard", "wandb"):
        raise Unfit('track = ["tensorboard", "wandb"]')
    draft.set("track", [setting.value], setting)


# The keys of a dataset, of a subset of it, and of what is said of all: the inner one goes over the outer ones.
DATASET: Table = {
    "resolution": aside(),
    "batch_size": to("batch_size"),
    "enable_bucket": aside(),
    "bucket_no_upscale": off("smaller pictures are enlarged to the smallest bucket"),
    "caption_extension": always("captions are in .txt and .caption files", ".txt", ".caption"),
    "num_repeats": to("dataset_repeat"),
    "caption_prefix": to("caption_prefix"),
    "caption_suffix": to("caption_suffix"),
    "caption_dropout_rate": to("caption_dropout", number),
    "shuffle_caption": off("captions stay as they are"),
    "flip_aug": off("pictures are not mirrored"),
    "color_aug": off("colours are not changed"),
    "random_crop": off("pictures are cut off evenly"),
    "keep_tokens": off("captions stay as they are"),
    "is_reg": regularization(),
    "alpha_mask": alpha_mask(),
    "class_tokens": caption_of_all,
    "cache_directory": lost("what is encoded is kept in the output folder, or where `dsctl cache` puts it"),
    "control_directory": lost("put the pictures into target/ and control/ of one folder: data_file_keys"),
    "image_directory": to("dataset_base_path"),
    "image_dir": to("dataset_base_path"),
    "video_directory": _videos,
    "image_jsonl_file": _table("image"),
    "video_jsonl_file": _table("video"),
    "target_frames": _frames,
    "frame_extraction": one_of("clip_extraction", {"head": "head", "chunk": "every"}),
    "source_fps": lost("the frame rate of a clip is read from its file; fps takes fewer frames a second"),
    "max_frames": lost("num_frames is the number of frames"),
}
TABLE: Table = {
    "dataset_config": always("its settings are here"),
    "config_file": always("its settings are here"),
    **{name: aside() for name in WEIGHTS},
    "dit_high_noise": lost("name both denoisers by one preset or folder: model"),
    "pretrained_model_name_or_path": set_model,
    "tokenizer_path": to("tokenizer_path"),
    "model_version": always("the weights say which model it is"),
    "task": always("the weights say which model it is"),
    "output_dir": aside(),
    "output_name": aside(),
    "save_model_as": always("weights are safetensors", "safetensors"),
    "save_precision": one_of("lora_dtype", DTYPES),
    "save_every_n_steps": to("save_steps"),
    "save_every_n_epochs": always("without save_steps every epoch is saved", 1, "1"),
    "save_state": always("what resuming needs is saved with the weights", True),
    "learning_rate": to("learning_rate", number),
    "unet_lr": to("learning_rate", number),
    "lr_scheduler": one_of("lr_scheduler", {name: name for name in SCHEDULERS}),
    "lr_warmup_steps": to("lr_warmup_steps", number),
    "lr_scheduler_num_cycles": to("lr_num_cycles"),
    "lr_scheduler_power": to("lr_power", number),
    "optimizer_type": to("optimizer", optimizer),
    "optimizer_args": _arguments,
    "max_grad_norm": to("max_grad_norm", gradient_norm),
    "max_train_steps": aside(),
    "max_train_epochs": aside(),
    "train_batch_size": to("batch_size"),
    "gradient_accumulation_steps": to("gradient_accumulation_steps"),
    "gradient_checkpointing": switch("use_gradient_checkpointing"),
    "gradient_checkpointing_cpu_offload": switch("use_gradient_checkpointing_offload"),
    "mixed_precision": one_of("mixed_precision", PRECISIONS),
    "seed": to("seed"),
    "network_module": aside(),
    "network_dim": to("lora_rank"),
    "network_alpha": aside(),
    "network_dropout": to("lora_dropout", number),
    "network_weights": to("lora_checkpoint"),
    "network_train_unet_only": always("the LoRA is on the denoiser", True),
    "network_args": off("the layers of a LoRA are lora_target_modules"),
    "timestep_sampling": aside(),
    "discrete_flow_shift": aside(),
    "sigmoid_scale": aside(),
    "weighting_scheme": one_of("loss_weighting", {"none": "none"}),
    "min_timestep": always("all noise levels are drawn", 0, "0"),
    "max_timestep": always("all noise levels are drawn", 1000, "1000"),
    "fp8_base": adds("fp8_models", "dit"),
    "fp8_scaled": off("how the weights of fp8_models are scaled is not chosen"),
    **{f"fp8_{name}": adds("fp8_models", "text_encoder") for name in ("vl", "llm", "t5", "text_encoder")},
    "blocks_to_swap": to("offload_blocks"),
    "compile": switch("compile"),
    "sdpa": always("attention is torch's own", True),
    **{name: off(ATTENTION) for name in ("xformers", "flash_attn", "flash3", "sage_attn", "split_attn")},
    "max_data_loader_n_workers": to("dataset_num_workers"),
    "persistent_data_loader_workers": always("processes that read ahead stay"),
    "cache_latents": always(CACHED, True),
    "cache_latents_to_disk": always(CACHED, True),
    "cache_text_encoder_outputs": always(CACHED, True),
    "cache_text_encoder_outputs_to_disk": always(CACHED, True),
    "sample_every_n_steps": to("sample_every"),
    "sample_at_first": always("samples are drawn before the first step", True),
    "sample_prompts": lost("its lines have flags of kohya's; write prompts alone for sample_prompts_file"),
    "log_with": _wandb,
    "log_tracker_name": to("track_project"),
    "resume": lost("dsctl goes on with a run of its own: --resume latest"),
    "caption_dropout_rate": to("caption_dropout", number),
    "resolution": aside(),
    "enable_bucket": aside(),
    "prior_loss_weight": aside(),
    "masked_loss": aside(),
    "train_data_dir": to("dataset_base_path"),
    "in_json": to("dataset_metadata_path"),
    "accelerate.mixed_precision": always("it is that of the training"),
    "accelerate.num_processes": to("num_processes"),
    "accelerate.config_file": to("accelerate_config"),
    "accelerate.num_cpu_threads_per_process": lost("set OMP_NUM_THREADS"),
}


def finish(draft: Draft) -> None:
    """Combine settings, and add what kohya's trainers do by default and dsctl does not."""
    if {"width", "bucket_resolutions"} & draft.options.keys() or (draft.tables and all(map(_has_size, draft.tables))):
        draft.lose(draft.pop("resolution", "enable_bucket"), "a table of the dataset overrides it")
    _sizes(draft)
    _regularization(draft)
    _files(draft)
    _length(draft)
    _levels(draft)
    for setting in draft.pop("network_module"):
        product = next((name for name in ("lokr", "loha") if str(setting.value) == f"networks.{name}"), None)
        if product is not None:
            draft.set("network", product, setting)
        elif "lora" in str(setting.value):
            draft.accept(setting, "what is trained is a LoRA where nothing else is said")
        else:
            draft.lose([setting], "of their networks, dsctl has LoRA, LoKr and LoHa")
    set_alpha(draft, "network_alpha")
    if "lora_rank" in draft.options:
        draft.default("lora_alpha", 1.0, "kohya's trainers take 1 where network_alpha is left out")
    draft.default("loss_weighting", "none", "kohya's trainers let all noise levels count alike")
    if draft.options.get("lr_warmup_steps") and draft.options.get("lr_scheduler", "constant") == "constant":
        draft.drop("lr_warmup_steps", "with lr_scheduler constant there is no warm-up")


def datasets_of(values: dict[str, Any], file: Path) -> tuple[list[Setting], list[list[Setting]]]:
    """Return the settings of a dataset file that are of no dataset, and those of each dataset."""
    general = values.get("general")
    shared = tables_in(general, file, (), keys=("general",))[0] if isinstance(general, dict) else []
    datasets = tables_in({"datasets": values["datasets"]}, file, ("datasets", "subsets"), shared=shared)
    rest = {name: value for name, value in values.items() if name not in ("general", "datasets")}
    return list(flattened(rest, file)), datasets


def finish_dataset(draft: Draft) -> None:
    """Combine the settings of one dataset."""
    _sizes(draft)


def _has_size(table: TableDraft) -> bool:
    return bool({"width", "bucket_resolutions"} & table.values.keys())


def _regularization(draft: Draft) -> None:
    """Weigh the datasets for regularization, and say whether masks are read."""
    weigh_regularization(draft, draft.pop("prior_loss_weight"))
    if any(table.values.get("regularization") for table in draft.tables):
        draft.note(
            "kohya's trainers repeat what is for regularization until it has as many samples as the rest; here repeat "
            "says how often"
        )
    for setting in draft.pop("masked_loss"):
        masked = draft.options.get("mask_from_alpha") or any("mask_from_alpha" in t.values for t in draft.tables)
        if masked or setting.value in FALSE:
            draft.accept(setting, "masks are read from the alpha channels" if masked else "it asks for nothing")
        else:
            draft.lose([setting], 'masks are a column of a table, named mask, with extra_inputs = "mask"')


def _sizes(draft: Draft) -> None:
    """Turn `resolution` into buckets, or without buckets into one size."""
    sizes, switches = draft.pop("resolution"), draft.pop("enable_bucket")
    if not sizes:
        return draft.lose(switches[:1], "there is no resolution")
    size = sizes[0].value
    if isinstance(size, str) and "," in size:
        size = [part.strip() for part in size.split(",")]
    if switches and switches[0].value:
        return set_buckets(draft, [size], sizes[0], switches[0])
    width, height = size if isinstance(size, list) and len(size) == 2 else (size, size)
    refuse_wrong("height", height, sizes[0])
    draft.set("width", width, sizes[0])
    draft.set("height", height, *switches[:1])


def _files(draft: Draft) -> None:
    """Gather the weights, which are files one by one, and the output folder."""
    weights = draft.pop(*WEIGHTS)
    if weights and "model" in draft.options:
        draft.lose(weights, "the model is named as a whole")
    elif weights:
        draft.set("model_paths", [str(setting.value) for setting in weights], *weights)
    folder, name = draft.pop("output_dir"), draft.pop("output_name")
    if folder or name:
        parts = [str(setting.value).rstrip("/") for setting in (*folder, *name)]
        draft.set("output_path", "/".join(parts), *folder, *name)


def _length(draft: Draft) -> None:
    epochs, steps = draft.pop("max_train_epochs"), draft.pop("max_train_steps")
    if epochs:
        draft.lose(steps, "max_train_epochs overrides it")
        draft.set("num_epochs", epochs[0].value, *epochs)
    elif steps:
        draft.set("max_steps", steps[0].value, *steps)
    else:
        draft.default("max_steps", STEPS, "kohya's trainers take so many where no length is given")


def _levels(draft: Draft) -> None:
    """Translate how noise levels are drawn; `shift` is a logit-normal draw that is shifted by a constant.

    A method whose name ends in `_shift` has the shift of a family, which is left to dsctl.
    """
    settings: Mapping[str, list[Setting]] = {
        name: draft.pop(name) for name in ("timestep_sampling", "discrete_flow_shift", "sigmoid_scale")
    }
    methods, shifts, scales = settings.values()
    method = str(methods[0].value) if methods else ""
    if method not in ("uniform", "sigmoid", "shift") and not method.endswith("_shift"):
        draft.lose([*methods, *shifts, *scales], "of the ways to draw levels, dsctl has uniform, sigmoid and shift")
        draft.note("noise levels are drawn in dsctl's own way, uniform: see timestep_sampling")
        return
    draft.set("timestep_sampling", "uniform" if method == "uniform" else "logit_normal", *methods)
    if method == "shift" and shifts:
        draft.set("timestep_shift", number_of(shifts[0]), *shifts)
    else:
        draft.lose(shifts, f"timestep_sampling {method} does not use it")
        if method == "shift":
            draft.note("the shift of noise levels is the family's own: discrete_flow_shift is not there")
        elif not method.endswith("_shift"):
            draft.default("timestep_shift", 1.0, f"timestep_sampling {method} does not shift noise levels")
    if method == "uniform":
        draft.lose(scales, "timestep_sampling uniform does not use it")
    elif scales:
        draft.set("logit_std", number_of(scales[0]), *scales)
