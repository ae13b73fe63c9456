"""ai-toolkit: a YAML or JSON file whose `config.process[0]` describes the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsctl_core.imports.datasets import (
    alpha_mask,
    caption_of_all,
    is_list_of_tables,
    regularization,
    tables_in,
    weigh_regularization,
)
from dsctl_core.imports.draft import Draft, Setting, Unfit, Wrong, flattened
from dsctl_core.imports.presets import set_model
from dsctl_core.imports.rules import (
    DTYPES,
    PRECISIONS,
    Table,
    adds,
    adds_text,
    always,
    aside,
    buckets,
    gradient_norm,
    lost,
    number,
    off,
    one_of,
    optimizer,
    set_alpha,
    switch,
    to,
)

TOOL = "ai-toolkit"
DATASETS = "datasets"
SEVERAL = ("sample.samples[].prompt",)
SCHEDULERS = {name: name for name in ("constant", "linear", "cosine", "cosine_with_restarts", "constant_with_warmup")}
# Its ways to draw noise levels: (timestep_sampling, whether the family's own shift is used).
LEVELS = {"sigmoid": ("logit_normal", False), "linear": ("uniform", False), "shift": ("uniform", True)}
MASKS = 'masks are a column of a table, named mask: data_file_keys = "image,mask" and extra_inputs = "mask"'
RANK = 4  # of a network where neither linear nor rank says it (NetworkConfig in toolkit/config_modules.py)
CACHED = "latents and prompts are encoded once where samples repeat"


def _device(value: Any) -> str:
    if value != "cpu":
        raise Unfit("a GPU is used if there is one; which one, CUDA_VISIBLE_DEVICES says")
    return str(value)


def _fp8(component: str) -> Any:
    """Return a rule for `qtype` and `qtype_te`: of the ways to hold weights in few bits, fp8 has a counterpart."""

    def rule(draft: Draft, setting: Setting) -> None:
        switched = draft.pop("model.quantize" if component == "dit" else "model.quantize_te")
        if switched and not switched[0].value:
            draft.lose([*switched, setting], "it asks for nothing")
        elif setting.value not in ("qfloat8", "float8"):
            draft.lose([*switched, setting], "fp8 (qfloat8) is what fp8_models offers")
        else:
            draft.add("fp8_models", component, setting)
            for each in switched:
                draft.accept(each, "fp8_models says it")

    return rule


def _optimizer_argument(draft: Draft, setting: Setting) -> None:
    name = setting.keys[-1]
    if name == "weight_decay":
        draft.set("weight_decay", number(setting.value), setting)
    else:
        draft.add("optimizer_args", f"{name}={setting.value}", setting)


def _trigger(draft: Draft, setting: Setting) -> None:
    draft.set("caption_prefix", setting.value, setting)
    draft.note("caption_prefix stands before every caption, also where the trigger word is in it already")


def _negative(draft: Draft, setting: Setting) -> None:
    if setting.value:
        draft.set("sample_negative_prompt", setting.value, setting)
    else:
        draft.accept(setting, "it asks for nothing")


def _empty_network(draft: Draft, setting: Setting) -> None:
    if setting.value not in (None, {}):
        raise Wrong("no table of settings")
    draft.accept(setting, "it asks for nothing" if setting.value is None else "each setting is the default")


DATASET: Table = {
    "folder_path": to("dataset_base_path"),
    "dataset_path": to("dataset_base_path"),
    "caption_ext": always("captions are in .txt and .caption files", "txt", ".txt", "caption"),
    "caption_dropout_rate": to("caption_dropout", number),
    "shuffle_tokens": off("captions stay as they are"),
    "cache_latents": always(CACHED, True),
    "cache_latents_to_disk": always(CACHED, True),
    "cache_text_embeddings": always(CACHED, True),
    "resolution": buckets(),
    "buckets": always("bucket_resolutions makes buckets", True),
    "num_repeats": to("dataset_repeat"),
    "num_frames": to("num_frames"),
    "fps": to("fps"),
    "is_reg": regularization(),
    "flip_x": off("pictures are not mirrored"),
    "flip_y": off("pictures are not mirrored"),
    "random_crop": off("pictures are cut off evenly"),
    "control_path": off("put the pictures into target/ and control/ of one folder: data_file_keys"),
    "mask_path": off(MASKS),
    "alpha_mask": alpha_mask(),
    "mask_min_value": off("what a mask leaves out does not count at all"),
    "invert_mask": off("white is what counts"),
    "default_caption": caption_of_all,
    "loss_multiplier": to("loss_weight", number),
}
TABLE: Table = {
    "job": always("the config trains", "extension", "train"),
    "config.name": aside(),
    "type": always("the config trains", "sd_trainer", "diffusion_trainer", "ui_trainer"),
    "training_folder": aside(),
    "device": to("device", _device),
    "trigger_word": _trigger,
    "network": _empty_network,
    "network.type": aside(),
    "network.lokr_full_rank": aside(),
    "network.lokr_factor": aside(),
    "network.linear": to("lora_rank"),
    "network.rank": to("lora_rank"),
    "network.linear_alpha": aside(),
    "network.alpha": aside(),
    "network.dropout": to("lora_dropout", number),
    "network.conv*": off("the networks of dsctl have linear layers alone"),
    "network.pretrained_lora_path": to("lora_checkpoint"),
    "save.dtype": one_of("lora_dtype", DTYPES),
    "save.save_every": to("save_steps"),
    "save.max_step_saves_to_keep": lost("every checkpoint is kept; state_total_limit counts what resuming needs"),
    "save.push_to_hub": off("`dsctl upload FILE --repo OWNER/NAME` after the run"),
    "save.save_format": always("a LoRA has the key names that diffusers reads", "diffusers"),
    "train.batch_size": to("batch_size"),
    "train.steps": to("max_steps"),
    "train.gradient_accumulation": to("gradient_accumulation_steps"),
    "train.gradient_accumulation_steps": to("gradient_accumulation_steps"),
    "train.train_unet": always("the denoiser is trained", True),
    "train.train_text_encoder": off('lora_base_model = "text_encoder" trains that alone'),
    "train.gradient_checkpointing": switch("use_gradient_checkpointing"),
    "train.noise_scheduler": always("training is flow matching", "flowmatch"),
    "train.timestep_type": aside(),
    "train.content_or_style": always("no side of the noise levels is preferred", "balanced"),
    "train.optimizer": to("optimizer", optimizer),
    "train.optimizer_params.*": _optimizer_argument,
    "train.lr": to("learning_rate", number),
    "train.unet_lr": to("learning_rate", number),
    "train.lr_scheduler": one_of("lr_scheduler", SCHEDULERS),
    "train.lr_scheduler_params.num_warmup_steps": to("lr_warmup_steps", number),
    "train.lr_scheduler_params.warmup_steps": to("lr_warmup_steps", number),
    "train.max_grad_norm": to("max_grad_norm", gradient_norm),
    "train.dtype": one_of("mixed_precision", PRECISIONS),
    "train.ema_config.use_ema": aside(),
    "train.ema_config.ema_decay": aside(),
    "train.cache_text_embeddings": always(CACHED, True),
    "train.skip_first_sample": off("samples are drawn before the first step, to compare with"),
    "train.force_first_sample": always("samples are drawn before the first step", True),
    "train.disable_sampling": aside(),
    "train.unload_text_encoder": always("what a step does not need is not loaded", True),
    "train.linear_timesteps": off(),
    "train.seed": to("seed"),
    "train.reg_weight": aside(),
    "train.loss_type": always("the loss is the mean squared error", "mse"),
    "logging.use_wandb": aside(),
    "logging.project_name": aside(),
    "model.name_or_path": set_model,
    "model.arch": always("the weights say which architecture it is"),
    "model.quantize": aside(),
    "model.qtype": _fp8("dit"),
    "model.quantize_te": aside(),
    "model.qtype_te": _fp8("text_encoder"),
    "model.low_vram": off("offload_blocks = N holds N blocks of the denoiser in main memory"),
    "model.assistant_lora_path": to("preset_lora_path"),
    "sample.sampler": always("samples are drawn by flow matching", "flowmatch"),
    "sample.sample_every": to("sample_every"),
    "sample.width": to("sample_width"),
    "sample.height": to("sample_height"),
    "sample.prompts": aside(),
    "sample.samples[].prompt": adds_text("sample_prompt"),
    "sample.neg": _negative,
    "sample.seed": to("sample_seed"),
    "sample.walk_seed": always("each further prompt has the next seed", True),
    "sample.guidance_scale": to("sample_cfg_scale", number),
    "sample.sample_steps": to("sample_steps"),
    "sample.num_frames": always("a sample has as many frames as the clips", 1),
    "meta.*": lost("what a config says of itself is kept in no run"),
}
MODEL_SWITCHES = (("model.quantize", "dit"), ("model.quantize_te", "text_encoder"))


def finish(draft: Draft) -> None:
    """Combine settings, and add what ai-toolkit does by default and dsctl does not."""
    _output(draft)
    _levels(draft)
    _samples(draft)
    for name, component in MODEL_SWITCHES:  # without a qtype, which is qfloat8 then
        for setting in draft.pop(name):
            adds("fp8_models", component)(draft, setting)
    for setting in draft.pop("train.ema_config.ema_decay"):
        used = draft.pop("train.ema_config.use_ema")
        if used and used[0].value:
            draft.set("ema_decay", setting.value, *used, setting)
        else:
            draft.lose([*used, setting], "without use_ema it asks for nothing")
    _network(draft)
    for setting in draft.pop("logging.use_wandb"):
        adds("track", "wandb")(draft, setting)
    for setting in draft.pop("logging.project_name"):
        draft.set("track_project", setting.value, setting)
    if not any(name.partition(".")[0] == "network" for name in draft.given):
        draft.default("trainable_models", ["dit"], f"without a network, {TOOL} trains the whole denoiser")
    elif "lora_rank" in draft.options:
        draft.default("lora_alpha", 1.0, f"{TOOL} takes 1 where linear_alpha is left out")
    weigh_regularization(draft, draft.pop("train.reg_weight"))
    if any(table.values.get("regularization") for table in draft.tables):
        draft.note(
            f"{TOOL} draws every second batch from the datasets for regularization; here the shares are those of "
            "repeat, or of a weight in each [[dataset]]"
        )
    draft.default("loss_weighting", "none", f"{TOOL} lets all noise levels count alike")


def _network(draft: Draft) -> None:
    """Choose the network; a LoKr of full rank has neither rank nor alpha."""
    kinds = draft.pop("network.type")
    full, factor = draft.pop("network.lokr_full_rank"), draft.pop("network.lokr_factor")
    lokr = False
    for setting in kinds:
        lokr = setting.value == "lokr"
        if lokr:
            draft.set("network", "lokr", setting)
        elif setting.value == "lora":
            draft.accept(setting, "what is trained is a LoRA where nothing else is said")
        else:
            draft.lose([setting], "of its networks, dsctl has lora and lokr")
    if any(name.partition(".")[0] == "network" for name in draft.given) and not (lokr and full and full[0].value):
        draft.default("lora_rank", RANK, f"the rank of {TOOL} where none is given")
    set_alpha(draft, "network.linear_alpha", "network.alpha")
    for setting in (*full, *factor):
        if not lokr:
            draft.accept(setting, "it is for a LoKr")
    for setting in full if lokr else ():
        if setting.value:
            draft.set("lokr_full_matrix", True, setting)
            for name in {"lora_rank", "lora_alpha"} & draft.options.keys():
                draft.drop(name, "a LoKr of full rank has none")
        else:
            draft.accept(setting, "a LoKr has a rank where nothing else is said")
    for setting in factor if lokr else ():
        if setting.value == -1:
            draft.accept(setting, "the factors are next to the square roots where nothing else is said")
        else:
            draft.set("lokr_factor", setting.value, setting)


def finish_dataset(draft: Draft) -> None:
    """Add what ai-toolkit does with a dataset by default."""
    draft.default("bucket_resolutions", [512], f"{TOOL} takes 512 where resolution is left out")


def _output(draft: Draft) -> None:
    folder, name = draft.pop("training_folder"), draft.pop("config.name")
    if folder or name:
        parts = [str(setting.value).rstrip("/") for setting in (*folder, *name)]
        draft.set("output_path", "/".join(parts), *folder, *name)


def _levels(draft: Draft) -> None:
    settings = draft.pop("train.timestep_type")
    kind = settings[0].value if settings else "sigmoid"
    if kind not in LEVELS:
        draft.lose(settings, f"of its values, dsctl has {', '.join(LEVELS)}")
        return
    sampling, shifted = LEVELS[kind]
    if settings:
        draft.set("timestep_sampling", sampling, *settings)
    else:
        draft.default("timestep_sampling", sampling, f"{TOOL} draws noise levels so where timestep_type is left out")
    if not shifted:
        draft.default("timestep_shift", 1.0, f"{TOOL} does not shift noise levels with timestep_type {kind}")


def _samples(draft: Draft) -> None:
    for setting in draft.pop("sample.prompts"):
        texts = setting.value if isinstance(setting.value, list) else [setting.value]
        draft.set("sample_prompt", [str(text) for text in texts], setting)
    if "sample_prompt" in draft.options:
        word = str(draft.options.get("caption_prefix", "[trigger]"))
        draft.options["sample_prompt"] = [text.replace("[trigger]", word) for text in draft.options["sample_prompt"]]
    for setting in draft.pop("train.disable_sampling"):
        if not setting.value:
            draft.accept(setting, "it asks for nothing")
            continue
        draft.accept(setting, "without sample_every no samples are drawn")
        for name in [name for name in draft.options if name.startswith("sample_")]:
            draft.drop(name, "disable_sampling is set")


def settings_of(values: dict[str, Any], file: Path) -> tuple[list[Setting], list[list[Setting]]]:
    """Return the settings of a config, the keys of its first process without what stands before them all.

    The second result are those of each of its datasets.
    """
    first, *others = values["config"]["process"]
    rest = {name: value for name, value in values.items() if name != "config"}
    rest["config"] = {name: value for name, value in values["config"].items() if name != "process"}
    later = [each for number, process in enumerate(others, 1) for each in _of_process(process, file, number)]
    start, own = "config.process[0].", dict(first)
    listed = {DATASETS: own.pop(DATASETS)} if is_list_of_tables(own.get(DATASETS)) else {}
    datasets = tables_in(listed, file, (DATASETS,), inside=start) if listed else []
    return [*flattened(rest, file), *flattened(own, file, (), start), *later], datasets


def _of_process(process: dict[str, Any], file: Path, number: int) -> list[Setting]:
    return list(flattened(process, file, ("config", "process", number)))


def is_config(values: dict[str, Any]) -> bool:
    """Return whether the content of a file is a config of ai-toolkit."""
    config = values.get("config")
    processes = config.get("process") if isinstance(config, dict) else None
    return isinstance(processes, list) and bool(processes) and all(isinstance(each, dict) for each in processes)
