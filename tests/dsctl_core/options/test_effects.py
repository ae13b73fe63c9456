"""Options without effect are declared in one table, and refused when they are given, whatever their value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsctl_core.errors import UsageError
from dsctl_core.options import (
    CacheOptions,
    DatasetAnnotateOptions,
    DatasetValidateOptions,
    InferOptions,
    ModelsShowOptions,
    Options,
    TrainOptions,
    lora_effects,
    model_effects,
)
from dsctl_core.options import effects as table
from dsctl_core.options.dataset import DatasetCaptionOptions
from dsctl_core.options.effects import Idle
from dsctl_core.options.hub import DownloadOptions
from dsctl_core.options.lora_tools import LoraConvertOptions, LoraExtractOptions, MergeLoraOptions
from dsctl_core.options.messages import bare_type
from dsctl_core.options.report import ReportOptions

TRAIN: dict[str, Any] = {"model": "m", "dataset_base_path": "d", "output_path": "o", "lora_rank": 4}
FROM_CACHE: dict[str, Any] = {"from_cache": "c", "output_path": "o", "lora_rank": 4}
WHOLE: dict[str, Any] = {**TRAIN, "lora_rank": None, "trainable_models": "dit"}
FIRST: dict[str, Any] = {**TRAIN, "task": "sft:data_process"}
INFER: dict[str, Any] = {"model": "m", "prompt": "p"}
CACHE: dict[str, Any] = {"model": "m", "dataset_base_path": "d", "output_path": "o"}
TWO = ['{"path": "a"}', '{"path": "b"}']
MERGE: dict[str, Any] = {"model": "m", "lora": ["l"], "output": "o"}

# kind -> the options of a run of that kind
RUNS: dict[str, tuple[type[Options], dict[str, Any]]] = {
    "ENCODED": (TrainOptions, FROM_CACHE),
    "ENCODED_ONCE": (TrainOptions, FROM_CACHE),
    "OWN_CACHE": (TrainOptions, FROM_CACHE),
    "TOKENIZER_OF_CACHE": (TrainOptions, FROM_CACHE),
    "TRAINS_NOTHING": (TrainOptions, FIRST),
    "CONTINUES_BY_ITSELF": (TrainOptions, FIRST),
    "ALWAYS_A_CACHE": (TrainOptions, {**FIRST, "dataset_base_path": None, "model": None}),
    "IN_ONE_PROCESS": (TrainOptions, {**TRAIN, "dry_run": True}),
    "ONE_PROMPT": (CacheOptions, CACHE),
    "EACH_ROW_ONCE": (CacheOptions, CACHE),
    "OTHERS_NEED": (CacheOptions, {**CACHE, "shared": True}),
    "NOT_STORED": (TrainOptions, TRAIN),
    "NOT_BATCHED": (TrainOptions, TRAIN),
    "NOT_CHECKPOINTED": (TrainOptions, TRAIN),
    "IN_MAIN_MEMORY": (TrainOptions, {**TRAIN, "device": "cpu"}),
    "FITS_NO_CPU": (TrainOptions, {**TRAIN, "device": "cpu"}),
    "NEW_RUN": (TrainOptions, TRAIN),
    "NO_DRY_RUN": (TrainOptions, TRAIN),
    "NO_TEMPLATE": (InferOptions, INFER),
    "NO_TEMPLATE_TO_TRUST": (TrainOptions, TRAIN),
    "NO_LORA": (TrainOptions, WHOLE),
    "ONLY_LORA": (TrainOptions, {**TRAIN, "network": "loha"}),
    "ONLY_LOKR": (TrainOptions, TRAIN),
    "FULL_LOKR": (TrainOptions, {**TRAIN, "lora_rank": None, "network": "lokr", "lokr_full_matrix": True}),
    "NO_PRESET_LORA": (TrainOptions, TRAIN),
    "INTO_BASE": (MergeLoraOptions, MERGE),
    "INTO_LORA": (MergeLoraOptions, {**MERGE, "into": "lora"}),
    "NO_WARMUP": (TrainOptions, TRAIN),
    "NO_RESTARTS": (TrainOptions, {**TRAIN, "lr_scheduler": "cosine"}),
    "NO_POWER": (TrainOptions, {**TRAIN, "lr_scheduler": "cosine"}),
    "NOT_NORMAL": (TrainOptions, TRAIN),
    "OF_DIFFSYNTH": (TrainOptions, {**TRAIN, "timestep_sampling": "diffsynth"}),
    "NO_SAMPLES": (TrainOptions, TRAIN),
    "NO_VALIDATION": (TrainOptions, TRAIN),
    "NO_TRACKER": (TrainOptions, {**TRAIN, "track": "csv"}),
    "NO_PICTURE": (InferOptions, INFER),
    "WITHOUT_GRAPH": (ModelsShowOptions, {"name": "n"}),
    "ONLY_LISTED": (DownloadOptions, {"what": "a/b", "list": True}),
    "IN_TABLES": (TrainOptions, {"model": "m", "output_path": "o", "lora_rank": 4, "dataset": TWO}),
    "NO_MASKS": (TrainOptions, TRAIN),
    "NO_REMOTE": (TrainOptions, TRAIN),
    "SPREAD": (TrainOptions, {**TRAIN, "clip_extraction": "uniform"}),
    "CLIP_REPLACED": (InferOptions, INFER),
    "NO_VACE_VIDEO": (InferOptions, INFER),
    "NO_CONTROLNET": (InferOptions, INFER),
    "NO_ANNOTATOR": (DatasetAnnotateOptions, {"path": "d", "kind": "canny"}),
    "NO_DETECTOR": (DatasetAnnotateOptions, {"path": "d", "kind": "depth", "annotator": "a/b"}),
    "ALWAYS_LIKELIEST": (DatasetCaptionOptions, {"path": "d", "model": "m"}),
    "NOT_SERVED": (ReportOptions, {"runs": ["r"]}),
    "SERVED": (ReportOptions, {"runs": ["r"], "serve": True}),
}
# kind -> the same where only its files tell, with what they tell
OPENED: dict[str, tuple[type[Options], dict[str, Any], dict[str, Any]]] = {
    "CACHE_WITHOUT_TEMPLATE": (TrainOptions, FROM_CACHE, {"folder": "c"}),
    "DRAWS_NO_LEVELS": (TrainOptions, {**TRAIN, "timestep_sampling": "logit_normal"}, {"task": "direct_distill"}),
    "ONE_COMPONENT": (LoraExtractOptions, {"base": "b", "tuned": "t", "rank": 1, "output": "o"}, {"found": "dit"}),
    "PICTURES_ONLY": (CacheOptions, CACHE, {"title": "Qwen-Image"}),
    "EDITS_NOTHING": (InferOptions, INFER, {"title": "Qwen-Image"}),
    "NO_GUIDANCE_INPUT": (InferOptions, INFER, {"title": "Qwen-Image"}),
    "NO_LAYERS": (InferOptions, INFER, {"title": "Qwen-Image"}),
    "DECOMPOSES": (InferOptions, INFER, {"title": "Qwen-Image-Layered"}),
    "NO_FIRST_FRAME": (InferOptions, INFER, {"model": "wan"}),
    "NO_LAST_FRAME": (InferOptions, INFER, {"model": "wan"}),
    "PICTURE_REPLACED": (InferOptions, INFER, {}),
    "STILL": (InferOptions, INFER, {}),
    "NO_CLIP": (InferOptions, INFER, {"title": "Wan"}),
    "SEVERAL_DATASETS": (DatasetValidateOptions, {"path": "d.toml"}, {}),
    "GUIDANCE_OFF": (InferOptions, {**INFER, "template": ["t"]}, {}),
    "OF_A_DATASET": (DatasetValidateOptions, {"path": "c"}, {}),
    "WITHOUT_REPORT": (DatasetValidateOptions, {"path": "c"}, {}),
    "NO_VACE": (InferOptions, {**INFER, "vace_video": "v.mp4"}, {"title": "Qwen-Image"}),
    "NO_CLIPS": (DatasetCaptionOptions, {"path": "d", "model": "m"}, {"path": "d"}),
    "NO_TABLE": (DatasetCaptionOptions, {"path": "d", "model": "m"}, {"path": "d"}),
    "LORA_ALREADY": (LoraConvertOptions, {"file": "l", "to": "comfyui", "output": "o"}, {"file": "l"}),
    "IN_THE_PACKAGE": (DownloadOptions, {"what": "tiny"}, {"folder": "f", "what": "tiny"}),
}
# values of options, where the default, or the lowest value, will not do
VALUES: dict[str, Any] = {
    **dict.fromkeys(("dataset_metadata_path", "tokenizer_path", "preset_lora_model", "component", "token"), "x"),
    **dict.fromkeys(("trigger_words", "negative_prompt", "revision", "model", "sample_negative_prompt"), "x"),
    **dict.fromkeys(("sample_prompts_file", "inpaint_mask", "local_dir", "metadata", "from_cache", "resume"), "f"),
    "accelerate_config": "f",
    "mirror": "s3://bucket/folder",
    "caption_prefix": "",
    "caption_suffix": "",
    "column": "a=b",
    "edit_image": ["a.png"],
    "sample_prompt": "a",
    "template_inputs": ["{}"],
    "negative_template_inputs": ["{}"],
    "data_file_keys": "image",
    "bucket_resolutions": "512",
    "track": "csv",
    "allow_changed": "seed",
    "include": "*",
    "exclude": "*",
    **dict.fromkeys(("lora_alpha", "lora_rank", "lokr_factor"), 1),
    "track_project": "dsctl",
    "trainable_models": "dit",
    "source": "modelscope",
    "validation_split": 0.5,
    "lr_power": 1,
    "logit_std": 1,
    "timestep_shift": 1,
    "fps": 1,
    "min_timestep_boundary": 0,
    **dict.fromkeys(("sample_every", "gradient_checkpointing_blocks", "offload_blocks", "validation_every"), 1),
    **dict.fromkeys(("sample_steps", "lr_num_cycles", "height", "width", "rank", "num_frames", "workers"), 1),
    "embedded_guidance": 1,
    "remote_cache_gb": 1,
    "dry_run_nodes": 1,
    "fit": "24",
    "layers": 1,
    "input_image": "a.png",
    "end_image": "a.png",
    "control_image": ["a.png"],
    "control_mask": ["a.png"],
    "annotator": "a/b",
    "detector": "a/b",
    "file_column": "image",
    "vace_video": "v.mp4",
    "vace_video_mask": "m.mp4",
    "vace_reference_image": ["a.png"],
    "vace_scale": "1",
    "network": "lora",
    "input_video": "a.mp4",
    "output": "a.html",
    "csv": "a.csv",
    "port": 1,
    "sample_cfg_scale": 1,
    "logit_mean": 0,
    "sample_height": 8,
    "sample_width": 8,
}


def kinds() -> dict[str, Idle]:
    return {
        name: entry
        for name, entry in (vars(table) | vars(lora_effects) | vars(model_effects)).items()
        if isinstance(entry, Idle)
    }


def value_of(name: str, options: type[Options]) -> Any:
    """Return a value to give, which is the default wherever that can be given."""
    if name in VALUES:
        return VALUES[name]
    default = options.flat_fields()[name].default
    return True if default is False else default


def test_every_kind_of_run_is_tried():
    assert RUNS.keys() | OPENED.keys() == kinds().keys()
    assert {name for name, entry in kinds().items() if entry.when is not None} == RUNS.keys()


def static() -> Iterator[tuple[str, str]]:
    for kind, (options, _) in RUNS.items():
        yield from ((kind, name) for name in kinds()[kind].names if name in options.flat_fields())


@pytest.mark.parametrize(("kind", "name"), list(static()))
def test_an_option_that_is_given_without_effect_is_refused_by_name(kind: str, name: str):
    options, base = RUNS[kind]
    options(**{**base, **({"model": "m", "dataset_base_path": "d"} if kind == "ALWAYS_A_CACHE" else {})})
    with pytest.raises(UsageError) as caught:
        options(**{**base, name: value_of(name, options)})
    flag = f"--{name.replace('_', '-')}"
    assert caught.value.problem.startswith(f"{flag} has no effect ")
    assert caught.value.hint and "{" not in caught.value.problem + caught.value.hint


def opened() -> Iterator[tuple[str, str]]:
    for kind in OPENED:
        yield from ((kind, name) for name in kinds()[kind].names)


def run_with(kind: str, name: str) -> tuple[type[Options], dict[str, Any], dict[str, Any]]:
    """Return a run of `kind` that has the option `name`: that of another command, where the first has it not."""
    options, base, facts = OPENED[kind]
    return (options, base, facts) if name in options.flat_fields() else (InferOptions, INFER, facts)


@pytest.mark.parametrize(("kind", "name"), list(opened()))
def test_what_only_files_tell_is_refused_in_the_same_words(kind: str, name: str):
    options, base, facts = run_with(kind, name)
    beside = {"height": {"width": 8}, "width": {"height": 8}, "input_image": {"denoising_strength": 0.5}}
    starts = {"denoising_strength": 0.5, "input_image": "a.png"}
    beside |= {"input_video": {"denoising_strength": 0.5}, "inpaint_mask": starts, "denoising_strength": starts}
    also = beside.get(name, {})
    given = options(**{**base, **also, name: value_of(name, options)})
    entry = replace(kinds()[kind], names=(name,))
    entry.refuse(options(**{each: value for each, value in base.items() if each != name}), **facts)
    with pytest.raises(UsageError, match=f"^--{name.replace('_', '-')} has no effect ") as caught:
        entry.refuse(given, **facts)
    assert caught.value.hint and "{" not in caught.value.problem + caught.value.hint


def test_a_switch_that_is_switched_off_asks_for_nothing():
    assert TrainOptions(**{**WHOLE, "use_dora": False}).given("use_dora")
    assert TrainOptions(**{**FROM_CACHE, "allow_outside": False}).given("allow_outside")
    with pytest.raises(UsageError, match="^--no-cache has no effect on training from a cache"):
        TrainOptions(**FROM_CACHE, cache=False)


def test_what_is_given_counts_and_not_its_value():
    with pytest.raises(UsageError, match="--num-epochs and --max-steps are both given"):
        TrainOptions(**TRAIN, num_epochs=1, max_steps=5)
    with pytest.raises(UsageError, match="--caption-dropout has no effect"):
        TrainOptions(**FROM_CACHE, caption_dropout=0)
    assert TrainOptions(**TRAIN, num_epochs=1, max_steps=None).training.num_epochs == 1


@pytest.mark.parametrize("task", ["sft:train", "direct_distill:train"])
def test_a_cache_that_is_named_as_the_dataset_is_a_cache(task: str):
    cached = {**TRAIN, "task": task, "dataset_base_path": "cache"}
    assert TrainOptions(**cached, tokenizer_path="t").cache_folder == Path("cache")
    with pytest.raises(UsageError, match="--dataset-metadata-path has no effect on training from a cache"):
        TrainOptions(**cached, dataset_metadata_path="m.csv")


def test_the_published_commands_of_both_stages_are_accepted():
    # https://github.com/modelscope/DiffSynth-Studio: a Template model of FLUX.2 klein, in two stages.
    weights = "own/klein:text_encoder/*.safetensors,own/klein:vae/diffusion_pytorch_model.safetensors"
    shared: dict[str, Any] = {
        "extra_inputs": "template_inputs",
        "max_pixels": 1048576,
        "template": "own/brightness:",
        "tokenizer_path": "own/klein:tokenizer/",
        "learning_rate": 1e-4,
        "num_epochs": 2,
        "remove_prefix_in_ckpt": "pipe.template_model.",
        "trainable_models": "template_model",
        "use_gradient_checkpointing": True,
        "find_unused_parameters": True,
    }
    first = {"dataset_base_path": "d", "dataset_metadata_path": "d/m.jsonl", "dataset_repeat": 1, "output_path": "c"}
    TrainOptions(**shared, **first, model_id_with_origin_paths=weights, fp8_models=weights, task="sft:data_process")
    dit = "own/klein:transformer/*.safetensors"
    TrainOptions(
        **shared,
        dataset_base_path="c",
        dataset_repeat=50,
        output_path="o",
        task="sft:train",
        model_id_with_origin_paths=dit,
        fp8_models=dit,
    )


def paths() -> Iterator[tuple[type[Options], str]]:

    for options in (
        TrainOptions,
        CacheOptions,
        InferOptions,
        DatasetValidateOptions,
        MergeLoraOptions,
        DownloadOptions,
    ):
        for name, field in options.flat_fields().items():
            if bare_type(field.annotation) is Path:
                yield options, name


@pytest.mark.parametrize(("options", "name"), list(paths()))
def test_an_empty_text_is_no_path(options: type[Options], name: str):
    with pytest.raises(UsageError, match="an empty text is no path"):
        options(**{name: ""})
