"""diffusion-pipe: a TOML file of the training, and one of the dataset."""

from __future__ import annotations

from typing import Any

from dsctl_core.imports.draft import Draft, Setting, Unfit, Wrong
from dsctl_core.imports.presets import preset_of_folder
from dsctl_core.imports.rules import (
    DTYPES,
    PRECISIONS,
    Table,
    always,
    aside,
    gradient_norm,
    lost,
    number,
    off,
    one_of,
    optimizer,
    set_buckets,
    switch,
    to,
)

TOOL = "diffusion-pipe"
SIGNS = {"output_dir", "micro_batch_size_per_gpu", "pipeline_stages", "activation_checkpointing"}
WEIGHTS = ("transformer_path", "vae_path", "text_encoder_path", "llm_path", "clip_path", "t5_path")
EVALUATION = "validation_split sets rows of the dataset aside, and validation_every measures their loss"
CACHE = "encoding is not divided in this way"
SHIFT = "model.shift"
FLOAT8 = ("float8", "float8_e4m3fn")


def _frames(draft: Draft, setting: Setting) -> None:
    counts = setting.value if isinstance(setting.value, list) else [setting.value]
    if not counts or not all(type(count) is int for count in counts):
        raise Wrong("no list of numbers of frames")
    if max(counts) == 1:
        draft.accept(setting, "pictures have one frame")
        return
    draft.set("num_frames", max(counts), setting)
    if len(counts) > 1:
        draft.note(f"of {setting.key} = {counts}, the largest is num_frames: a run has one number")


def _checkpointing(draft: Draft, setting: Setting) -> None:
    draft.set("use_gradient_checkpointing", bool(setting.value), setting)
    if setting.value == "unsloth":
        draft.set("use_gradient_checkpointing_offload", True)


def _float8(draft: Draft, setting: Setting) -> None:
    if setting.value not in FLOAT8:
        raise Unfit(f"of its values, dsctl has {', '.join(FLOAT8)}")
    draft.add("fp8_models", "dit", setting)


def _batch(value: Any) -> Any:
    if isinstance(value, list):
        raise Unfit("one batch size for all sizes")
    return value


def _argument(draft: Draft, setting: Setting) -> None:
    value = tuple(setting.value) if isinstance(setting.value, list) else setting.value
    draft.add("optimizer_args", f"{setting.keys[-1]}={value}".replace(" ", ""), setting)


# The keys of a directory, and of what is said of all of them, which those of one go over.
DATASET: Table = {
    "resolutions": aside(),
    "enable_ar_bucket": aside(),
    "ar_buckets": lost("buckets have the sides that follow from bucket_resolutions"),
    "min_ar": lost("buckets have aspect ratios from 1:4 to 4:1"),
    "max_ar": lost("buckets have aspect ratios from 1:4 to 4:1"),
    "num_ar_buckets": lost("buckets have the sides that follow from bucket_resolutions"),
    "frame_buckets": _frames,
    "num_repeats": to("dataset_repeat"),
    "caption_prefix": to("caption_prefix"),
    "cache_shuffle_num": off("captions stay as they are"),
    "shuffle_tags": off("captions stay as they are"),
    "skip_empty_caption": off('a picture without a caption is an error; on_bad_sample = "skip" leaves it out'),
    "path": to("dataset_base_path"),
    "mask_path": lost('masks are a column of the table, named mask, with extra_inputs = "mask"'),
    "control_path": lost("put the pictures into target/ and control/ of one folder: data_file_keys"),
}
TABLE: Table = {
    "output_dir": to("output_path"),
    "dataset": always("its settings are here"),
    "epochs": aside(),
    "max_steps": aside(),
    "micro_batch_size_per_gpu": to("batch_size", _batch),
    "gradient_accumulation_steps": to("gradient_accumulation_steps"),
    "gradient_clipping": to("max_grad_norm", gradient_norm),
    "pipeline_stages": always("each process has the whole model", 1),
    "partition_method": always("each process has the whole model", "parameters"),
    "warmup_steps": aside(),
    "lr_scheduler": aside(),
    "blocks_to_swap": to("offload_blocks"),
    "activation_checkpointing": _checkpointing,
    "reentrant_activation_checkpointing": off("recomputing is done in torch's other way"),
    "save_every_n_epochs": always("without save_steps every epoch is saved", 1),
    "save_every_n_steps": to("save_steps"),
    "checkpoint_every_n_minutes": lost("what resuming needs is saved whenever weights are: save_steps"),
    "checkpoint_every_n_epochs": lost("what resuming needs is saved whenever weights are: save_steps"),
    "save_dtype": one_of("lora_dtype", DTYPES),
    "compile": switch("compile"),
    "caching_batch_size": always(CACHE, 1),
    "map_num_proc": lost(CACHE),
    "steps_per_print": lost("metrics.jsonl has every step"),
    "video_clip_mode": always("the first frames of a clip are taken", "single_beginning"),
    "eval_*": lost(EVALUATION),
    "model.type": always("the weights say which model it is"),
    "model.diffusers_path": aside(),
    "model.ckpt_path": aside(),
    **{f"model.{name}": aside() for name in WEIGHTS},
    "model.dtype": one_of("mixed_precision", PRECISIONS),
    "model.transformer_dtype": _float8,
    "model.timestep_sample_method": aside(),
    SHIFT: to("timestep_shift", number),
    "model.sigmoid_scale": to("logit_std", number),
    "adapter.type": aside(),
    "adapter.rank": to("lora_rank"),
    "adapter.alpha": to("lora_alpha", number),
    "adapter.dropout": to("lora_dropout", number),
    "adapter.dtype": always("a LoRA is trained in float32", "float32"),
    "adapter.init_from_existing": to("lora_checkpoint"),
    "optimizer.type": to("optimizer", optimizer),
    "optimizer.lr": to("learning_rate", number),
    "optimizer.weight_decay": to("weight_decay", number),
    "optimizer.betas": _argument,
    "optimizer.eps": _argument,
    "monitoring.enable_wandb": aside(),
    "monitoring.wandb_tracker_name": aside(),
}


def finish(draft: Draft) -> None:
    """Combine settings, and add what diffusion-pipe does by default and dsctl does not."""
    _model(draft)
    _schedule(draft)
    _levels(draft)
    for setting in draft.pop("adapter.type"):
        if setting.value == "lora":
            draft.accept(setting, "what is trained beside the model is a LoRA")
        else:
            draft.lose([setting], "what is trained beside the model is a LoRA")
    if not any(name.partition(".")[0] == "adapter" for name in draft.given):
        draft.default("trainable_models", ["dit"], f"without an adapter, {TOOL} trains the whole denoiser")
    tracking = draft.pop("monitoring.enable_wandb")
    if tracking and tracking[0].value:
        draft.set("track", ["wandb"], *tracking)
        for setting in draft.pop("monitoring.wandb_tracker_name"):
            draft.set("track_project", setting.value, setting)
    draft.always += [(setting, "it asks for nothing") for setting in tracking if not setting.value]
    draft.default("loss_weighting", "none", f"{TOOL} lets all noise levels count alike")


def _model(draft: Draft) -> None:
    """Name the model: a folder of diffusers, a folder of the original code by its preset, or its files."""
    folders, originals = draft.pop("model.diffusers_path"), draft.pop("model.ckpt_path")
    weights = draft.pop(*(f"model.{name}" for name in WEIGHTS))
    preset = preset_of_folder(str(originals[0].value)) if originals else None
    if folders:
        path = str(folders[0].value)
        draft.set("model", path if "/" in path or "\\" in path else f"./{path}", *folders)
    elif preset is not None:
        draft.set("model", preset.name, *originals)
        draft.note(f"{originals[0].value} has the layout of the original code; {preset.name} are the same weights")
        originals = []
    elif weights:
        draft.set("model_paths", [str(setting.value) for setting in weights], *weights)
        weights = []
    draft.lose(originals, "dsctl reads folders in diffusers layout; this one has that of the original code")
    draft.lose(weights, "the model is named as a whole; model_paths names all of its files instead")


def finish_dataset(draft: Draft) -> None:
    """Turn `resolutions` into buckets, which they are for."""
    sizes, switches = draft.pop("resolutions"), draft.pop("enable_ar_bucket")
    for setting in switches:
        if setting.value:
            draft.accept(setting, "bucket_resolutions makes buckets")
        else:
            draft.lose([setting], "bucket_resolutions makes buckets of all aspect ratios")
    for setting in sizes:
        set_buckets(draft, setting.value, setting)


def _schedule(draft: Draft) -> None:
    epochs, steps = draft.pop("epochs"), draft.pop("max_steps")
    if steps:
        draft.set("max_steps", steps[0].value, *steps)
        draft.lose(epochs, "max_steps is given, and a run has one length")
    for setting in epochs if not steps else ():
        draft.set("num_epochs", setting.value, setting)
    courses, warmup = draft.pop("lr_scheduler"), draft.pop("warmup_steps")
    course = str(courses[0].value) if courses else "constant"
    warms = bool(warmup and warmup[0].value)
    if courses or warms:
        draft.set("lr_scheduler", "constant_with_warmup" if warms and course == "constant" else course, *courses)
    if warms:
        draft.set("lr_warmup_steps", warmup[0].value, *warmup)
    else:
        draft.always += [(setting, "it asks for nothing") for setting in warmup]


def _levels(draft: Draft) -> None:
    """Translate how noise levels are drawn; a key that ends in `_shift` is the shift of a family, left to dsctl."""
    methods = draft.pop("model.timestep_sample_method")
    if methods:
        draft.set("timestep_sampling", str(methods[0].value), *methods)
    else:
        draft.default("timestep_sampling", "logit_normal", f"{TOOL} draws noise levels so where it is left out")
    own = [each for each in draft.without_counterpart if each.setting.name.endswith("_shift") and each.setting.value]
    for each in own:
        draft.without_counterpart.remove(each)
        draft.accept(each.setting, "without timestep_shift the shift is the family's own")
    if not own:
        draft.default("timestep_shift", 1.0, f"{TOOL} does not shift noise levels unless it is told to")
