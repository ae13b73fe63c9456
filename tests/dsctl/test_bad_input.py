"""Bad input for every option: one line of error, one of hint, an exit code, and nothing written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dsctl_core.options import CacheOptions, InferOptions, Options, TrainOptions
from dsctl_core.options.messages import bare_type, bounds
from tests.cases import try_each
from tests.dsctl.bad_values import (
    BAD_CONTROL_PICTURES,
    BAD_CONTROLNET,
    BAD_GUIDANCE,
    BAD_OBJECTIVE,
    BAD_QUANTIZE,
    BAD_RUN,
    BAD_TEMPLATE,
    BAD_TEMPLATE_INPUTS,
    Bad,
)
from tests.dsctl.refusing import BASE, refused, words
from tests.dsctl.running import Dsctl

pytestmark = pytest.mark.usefixtures("files")

OPTIONS: dict[str, type[Options]] = {"train": TrainOptions, "cache": CacheOptions, "infer": InferOptions}

# option -> its bad values: (value, exit code, in the error, in the hint), with further changes to the command line
NO_MODEL: dict[str, str | None] = {"model": None}
IN_TABLES: dict[str, str | None] = {"dataset_base_path": None}
NO_DATASET: dict[str, str | None] = {"model": None, "dataset_base_path": None}
FROM_PICTURE: dict[str, str | None] = {"input_image": "data/a.png", "denoising_strength": "0.5"}

BAD_MODEL: dict[str, list[Bad]] = {
    "model": [
        ("qwen-imag", 2, "unknown model 'qwen-imag'", "did you mean 'qwen-image'?"),
        ("zzz", 2, "unknown model 'zzz'", "known models: "),
        ("", 2, "--model is empty", "--model: A preset"),
        ("./nowhere", 1, "nowhere does not exist", "model_index.json"),
        ("data", 1, "data has no model_index.json", "folder"),
        ("./file.txt", 1, "file.txt is not a folder", "model_index.json"),
    ],
    "model_paths": [
        (
            "dit.safetensors",
            2,
            "'dit.safetensors': this is not JSON",
            "a JSON list of paths",
            NO_MODEL,
        ),
        ('["nowhere.safetensors"]', 1, "nowhere.safetensors does not exist", "path", NO_MODEL),
    ],
    "model_id_with_origin_paths": [
        ("Qwen/Qwen-Image", 2, "'Qwen/Qwen-Image' does not have the form", "OWNER/NAME:PATTERN", NO_MODEL),
        ("Owner/Name:dit/*", 1, "Owner/Name is not in", "DSCTL_MODEL_BASE_PATH", NO_MODEL),
    ],
    "tokenizer_path": [
        ("nowhere", 2, "'nowhere' is neither a path that exists", "write it as"),
        ("data", 1, "data", "tokenizer"),
    ],
}
BAD_DATA: dict[str, list[Bad]] = {
    "dataset_base_path": [
        ("nowhere", 1, "nowhere", ""),
        ("file.txt", 1, "file.txt", ""),
        ("out", 1, "out", ""),
    ],
    "dataset": [
        ("data", 2, "--dataset is 'data': this is not JSON", "a JSON object such as", IN_TABLES),
        ('{"path": "data", "repeet": 2}', 2, "unknown key of [[dataset]] data", "did you mean 'repeat'?", IN_TABLES),
        ('{"path": "data", "weight": 0}', 2, "weight of [[dataset]] data is 0, which is too small", "above", IN_TABLES),
        ('{"path": "data", "column": "a"}', 2, "--column is given 'a'", "NEW=OLD", IN_TABLES),
        ('{"path": "data", "height": 32}', 2, "[[dataset]] data has half a size", "height and width", IN_TABLES),
        ('{"path": "nowhere"}', 1, "nowhere", "", IN_TABLES),
        ('{"path": "data"}', 2, "--dataset-base-path and --dataset are both given", "give one of them"),
    ],
    "dataset_config": [
        ("nowhere.toml", 1, "--dataset-config nowhere.toml does not exist", "check the path", IN_TABLES),
        ("file.txt", 2, "--dataset-config file.txt", "", IN_TABLES),
        ("", 2, "--dataset-config is ''", "a path", IN_TABLES),
    ],
    "dataset_metadata_path": [
        ("nowhere.csv", 1, "nowhere.csv", ""),
        ("data", 1, "data", ""),
        ("file.txt", 1, "file.txt", ""),
    ],
    "data_file_keys": [
        ("image,,mask", 2, "--data-file-keys is 'image,,mask'", "names separated by commas"),
        ("imgae", 1, "imgae", "image"),
    ],
    "column": [
        ("prompt", 2, "--column is given 'prompt'", "NEW=OLD"),
        ("prompt=", 2, "--column is given 'prompt='", "NEW=OLD"),
        ("prompt=a,prompt=b", 2, "one of them twice", "once"),
        ("text=promt", 1, "no column 'promt' to rename to 'text'", "--column text=prompt"),
    ],
    "bucket_resolutions": [
        ("512,big", 2, "--bucket-resolutions is given 'big'", "512,1024"),
        ("0", 2, "--bucket-resolutions is given '0'", "512,1024"),
        ("500", 2, "the bucket resolution 500 is not a positive multiple of 16", "496 and 512"),
    ],
    "short_clips": [
        ("stretch", 2, "--short-clips is 'stretch', which is unknown", "refuse, shorten"),
        ("shorten", 2, "--short-clips has no effect", "model for videos"),
    ],
    "clip_extraction": [
        ("tail", 2, "--clip-extraction is 'tail', which is unknown", "head, uniform"),
        ("uniform", 2, "--clip-extraction has no effect", "model for videos"),
        ("uniform", 2, "--fps has no effect with --clip-extraction uniform", "one of the two", {"fps": "8"}),
    ],
    "caption_prefix": [],  # any text will do
    "caption_suffix": [],
    "on_bad_sample": [("ignore", 2, "--on-bad-sample is 'ignore', which is unknown", "stop, skip")],
    "extra_inputs": [
        (",", 2, "--extra-inputs is ','", "names separated by commas"),
        ("no_such_input", 2, "unknown extra input 'no_such_input'", "Qwen-Image takes mask"),
    ],
}
BAD: dict[str, dict[str, list[Bad]]] = {
    "train": {
        **BAD_MODEL,
        **BAD_OBJECTIVE,
        **BAD_RUN,
        **BAD_TEMPLATE,
        **BAD_CONTROLNET,
        "task": [("stf", 2, "unknown task 'stf'", "did you mean 'sft'?")],
        **BAD_DATA,
        "trainable_models": [
            ("dti", 2, "unknown component of qwen-image 'dti'", "did you mean 'dit'?", {"lora_rank": None}),
            ("dit,", 2, "--trainable-models is 'dit,'", "names separated by commas"),
        ],
        "mixed_precision": [
            ("bf32", 2, "--mixed-precision is 'bf32', which is unknown", "no, bf16, fp16"),
            ("fp16", 2, "--mixed-precision fp16 needs a GPU", "bf16"),
        ],
        "fp8_models": [("vaee", 2, "unknown component of qwen-image 'vaee'", "did you mean 'vae'?")],
        "quantize": BAD_QUANTIZE,
        "fit": [
            ("large", 2, "--fit is 'large'", "a number of GB"),
            ("24", 2, "--fit has no effect on a CPU", "--device cpu"),
        ],
        "device": [("gpu", 2, "--device is 'gpu', which is unknown", "cpu, cuda")],
        "lora_base_model": [("dti", 2, "unknown component of qwen-image 'dti'", "did you mean 'dit'?")],
        "lora_target_modules": [
            ("to_q,to_kk", 1, "LoRA target 'to_kk' matches no linear layer", "did you mean 'to_k'?"),
            ("to_q,,to_k", 2, "--lora-target-modules is 'to_q,,to_k'", "names separated by commas"),
        ],
        "lora_checkpoint": [
            ("nowhere.safetensors", 1, "nowhere.safetensors cannot be read", "path"),
            ("cut.safetensors", 1, "cut.safetensors", "again"),
            ("data", 1, "data", ""),
        ],
        "preset_lora_path": [
            ("nowhere.safetensors", 1, "nowhere.safetensors cannot be read", "path"),
            ("cut.safetensors", 1, "cut.safetensors", "again"),
        ],
        "preset_lora_model": [
            ("dti", 2, "unknown component of qwen-image 'dti'", "did you mean", {"preset_lora_path": "cut.safetensors"})
        ],
        "lora": [
            ("nowhere.safetensors", 1, "nowhere.safetensors cannot be read", "path"),
            ("file.txt:abc", 2, "the scale 'abc' is not a number", "FILE:SCALE"),
            ("cut.safetensors:0.5", 1, "cut.safetensors", "again"),
            ("data", 1, "data holds no LoRA", "adapter_model.safetensors"),
        ],
        "network": [("lokrr", 2, "--network is 'lokrr', which is unknown", "did you mean 'lokr'?")],
        "lora_format": [("kohyaa", 2, "--lora-format is 'kohyaa', which is unknown", "did you mean 'kohya'?")],
        "lora_dtype": [("float8", 2, "--lora-dtype is 'float8', which is unknown", "float32, bfloat16, float16")],
        "trigger_words": [("", 2, "--trigger-words is empty", "Words that call")],
        "output_path": [
            ("file.txt", 1, "file.txt is a file, not a folder", "--output-path"),
            ("file.txt/out", 1, "file.txt is a file, so file.txt/out cannot be in it", "--output-path"),
            ("/proc/nowhere/out", 1, "/proc/nowhere/out could not be written", "can write to"),
        ],
        "remove_prefix_in_ckpt": [("pipe.dti.", 2, "pipe.dti.", "pipe.dit.")],
        "from_cache": [
            ("nowhere", 1, "nowhere does not exist or is a file", "dsctl cache", NO_DATASET),
            ("data", 1, "data is not a cache: it has no manifest.json", "dsctl cache", NO_DATASET),
            ("file.txt", 1, "file.txt does not exist or is a file", "dsctl cache", NO_DATASET),
            ("data", 2, "--from-cache and --dataset-base-path are both given", "one of them"),
        ],
    },
    "cache": {
        **BAD_MODEL,
        **BAD_TEMPLATE,
        **BAD_CONTROLNET,
        **BAD_DATA,
        # Of a folder without a tokenizer it hears when the pictures are encoded and kept already.
        "tokenizer_path": BAD_MODEL["tokenizer_path"][:1],
        "task": [("stf", 2, "unknown task 'stf'", "did you mean 'sft'?")],
        "trainable_models": [
            ("dti", 2, "unknown component of qwen-image 'dti'", "did you mean 'dit'?"),
            ("dit,", 2, "--trainable-models is 'dit,'", "names separated by commas"),
        ],
        "mixed_precision": [
            ("bf32", 2, "--mixed-precision is 'bf32', which is unknown", "no, bf16, fp16"),
            ("fp16", 2, "--mixed-precision fp16 needs a GPU", "bf16"),
        ],
        "fp8_models": [("vaee", 2, "unknown component of qwen-image 'vaee'", "did you mean 'vae'?")],
        "quantize": BAD_QUANTIZE,
        "device": [("gpu", 2, "--device is 'gpu', which is unknown", "cpu, cuda")],
        "on_bad_sample": [("leave", 2, "--on-bad-sample is 'leave', which is unknown", "stop, skip")],
        "output_path": [
            ("file.txt", 1, "file.txt is a file, not a folder", "--output-path"),
            ("data", 1, "data is not empty and holds no cache", "--output-path"),
            ("file.txt/out", 1, "file.txt is a file, so file.txt/out cannot be in it", "--output-path"),
            ("/proc/nowhere/out", 1, "/proc/nowhere/out", "can write to"),
        ],
    },
    "infer": {
        **BAD_MODEL,
        **BAD_TEMPLATE,
        **BAD_TEMPLATE_INPUTS,
        **BAD_CONTROL_PICTURES,
        "controlnet": [
            (value, *rest, {"control_image": "data/a.png"}) for value, *rest in BAD_CONTROLNET["controlnet"]
        ],
        "prompt": [
            ("", 2, "--prompt is empty", "--prompt: What"),
            (" ", 2, "--prompt is ' ', which says nothing", "say what"),
        ],
        "prompts_file": [
            ("nowhere.txt", 1, "--prompts-file nowhere.txt cannot be read", "one prompt per line", {"prompt": None}),
            ("data/a.png", 1, "--prompts-file data/a.png is not UTF-8 text", "UTF-8", {"prompt": None}),
            ("data", 1, "--prompts-file data cannot be read", "one prompt per line", {"prompt": None}),
        ],
        "cfg_scale": [*BAD_GUIDANCE, ("dit=2,dit_2=3", 2, "unknown denoiser 'dit_2'", "dit")],
        "offload": [("component", 2, "--offload is 'component', which is unknown", "did you mean 'components'?")],
        "quantize": BAD_QUANTIZE,
        "negative_prompt": [
            ("a dog", 2, "--negative-prompt has no effect at --cfg-scale 1", "above 1", {"cfg_scale": "1"})
        ],
        "lora": [
            ("nowhere.safetensors", 1, "nowhere.safetensors cannot be read", "path"),
            ("file.txt:abc", 2, "the scale 'abc' is not a number", "FILE:SCALE"),
            ("cut.safetensors:0.5", 1, "cut.safetensors", "again"),
            ("data", 1, "data holds no LoRA", "adapter_model.safetensors"),
        ],
        "input_image": [
            ("nowhere.png", 1, "--input-image: nowhere.png", "another picture", {"denoising_strength": "0.5"}),
            ("file.txt", 1, "--input-image: file.txt is not a picture", "another", {"denoising_strength": "0.5"}),
            ("cut.png", 1, "--input-image: cut.png", "another picture", {"denoising_strength": "0.5"}),
            ("data/a.png", 2, "--input-image has no effect", "--denoising-strength"),
        ],
        "solver": [("heun", 2, "--solver is 'heun', which is unknown", "euler, unipc")],
        "end_image": [("nowhere.png", 2, "--end-image has no effect on Qwen-Image", "model for videos")],
        "input_video": [
            (
                "a.mp4",
                2,
                "--input-video has no effect on Qwen-Image",
                "model for videos",
                {"denoising_strength": "0.5"},
            ),
            ("a.mp4", 2, "--input-video has no effect at --denoising-strength 1", "a lower"),
        ],
        "inpaint_mask": [
            ("nowhere.png", 1, "--inpaint-mask: nowhere.png", "another picture", FROM_PICTURE),
            ("small.png", 1, "--inpaint-mask is 16x16, but --input-image is 32x32", "as large as", FROM_PICTURE),
            ("small.png", 2, "--inpaint-mask has no effect without", "--input-image"),
        ],
        "edit_image": [("nowhere.png", 2, "--edit-image has no effect on Qwen-Image", "--input-image")],
        "trained_part": [
            ("nowhere.safetensors", 1, "nowhere.safetensors cannot be read", "path"),
            ("cut.safetensors", 1, "cut.safetensors", "again"),
        ],
        "vace_video": [("a.mp4", 2, "--vace-video has no effect on Qwen-Image", "VACE model")],
        "vace_video_mask": [("a.png", 2, "--vace-video-mask has no effect without --vace-video", "--vace-video FILE")],
        "vace_reference_image": [("a.png", 2, "--vace-reference-image has no effect on Qwen-Image", "VACE model")],
        "vace_scale": [
            ("0.5", 2, "--vace-scale has no effect on Qwen-Image", "VACE model"),
            ("1,,2", 2, "'' is not a number between -10 and 10", "a number, or one for each"),
            ("11", 2, "'11' is not a number between -10 and 10", "a number, or one for each"),
            ("nan", 2, "'nan' is not a number between -10 and 10", "a number, or one for each"),
        ],
        "output": [
            ("a.jpg", 2, "--output is 'a.jpg', which is no PNG", ".png"),
            ("a.mp4", 2, "--output is 'a.mp4', a clip, and Qwen-Image makes pictures", ".png"),
            ("file.txt/a.png", 1, "file.txt is a file, so file.txt/a.png cannot be in it", "another --output"),
            ("/proc/nowhere/a.png", 1, "/proc/nowhere could not be written", "can write to"),
        ],
        "dtype": [("float8", 2, "--dtype is 'float8', which is unknown", "float32, bfloat16, float16")],
        "device": [
            ("gpu", 2, "--device is 'gpu', which is unknown", "cpu, cuda"),
            ("cuda:99", 2, "--device cuda:99 is asked for", "doctor"),
        ],
    },
}


def numbers(options: type[Options]) -> list[str]:
    return [name for name, field in options.flat_fields().items() if bare_type(field.annotation) in (int, float)]


def switches(options: type[Options]) -> list[str]:
    return [name for name, field in options.flat_fields().items() if bare_type(field.annotation) is bool]


def bad_numbers(options: type[Options]) -> Iterator[tuple[str, str]]:
    """Give (option, value) for values beyond each bound of each number, and values that are no number."""
    for name in numbers(options):
        field = options.flat_fields()[name]
        limits = bounds(field)
        whole = bare_type(field.annotation) is int
        values = [limits["ge"] - 1] if "ge" in limits else [limits["gt"], limits["gt"] - 1]
        values += [limits["le"] + 1] if "le" in limits else []
        texts = [f"{value:.0f}" if float(value).is_integer() else str(value) for value in values]
        negative = [] if limits.get("ge", 0) <= -1 else ["-1"]
        for text in [*texts, *negative, "abc", "", "nan", "inf", *(["1.5"] if whole else [])]:
            yield name, text


def test_every_option_of_every_command_has_a_bad_value():
    assert set(OPTIONS) == set(BAD) == set(BASE)
    for command, options in OPTIONS.items():
        others = set(options.flat_fields()) - set(numbers(options)) - set(switches(options))
        assert set(BAD[command]) == others
        assert len(numbers(options)) >= 6


# What is counted in each test: the cases of `train`, `cache` and `infer`.
@pytest.mark.parametrize(("command", "count"), [("train", 305), ("cache", 79), ("infer", 55)])
def test_a_number_out_of_bounds_is_refused(dsctl: Dsctl, model: Path, command: str, count: int):
    def check(name: str, value: str) -> None:
        error, hint = refused(lambda: dsctl(*words(command, model, **{name: value})), 2)
        flag = f"--{name.replace('_', '-')}"
        assert error.startswith(f"{flag} is ")
        assert value in error
        assert hint.startswith(f"{flag} takes a")
        assert "number" in hint

    try_each(bad_numbers(OPTIONS[command]), check, at_least=count)


@pytest.mark.parametrize(("command", "count"), [("train", 11), ("cache", 4), ("infer", 3)])
def test_a_switch_takes_no_value(dsctl: Dsctl, model: Path, command: str, count: int):
    def check(name: str) -> None:
        error, hint = refused(lambda: dsctl(*words(command, model, **{name: "maybe"})), 2)
        flag = f"--{name.replace('_', '-')}"
        assert error == f"{flag} takes no value, but it has the value 'maybe'"
        assert hint == f"write {flag} alone"

    try_each([(name,) for name in switches(OPTIONS[command])], check, at_least=count)


@pytest.mark.parametrize(("command", "count"), [("train", 126), ("cache", 68), ("infer", 81)])
def test_a_bad_value_is_refused_by_name(dsctl: Dsctl, model: Path, command: str, count: int):
    def check(name: str, bad: Bad) -> None:
        value, code, problem, remedy, *further = bad
        changes = further[0] if further else {}
        error, hint = refused(lambda: dsctl(*words(command, model, **{**changes, name: value})), code)
        assert problem in error
        assert remedy in hint

    try_each([(name, bad) for name, cases in BAD[command].items() for bad in cases], check, count=count)
