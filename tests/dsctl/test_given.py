"""What is given and would do nothing, or comes twice, or is empty, is refused by name before anything is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.commands.cache import make_cache
from dsctl_core.options import CacheOptions, OptimizerOptions
from dsctl_core.training.plan.cautions import unusual_rate
from tests.cases import try_each
from tests.dsctl.refusing import refused, words
from tests.dsctl.running import Dsctl
from tests.templates import write_template

pytestmark = pytest.mark.usefixtures("files")

SMALL = ("--height", 32, "--width", 32)


def cached(model: Path, folder: str = "cache", **more: Any) -> str:
    size = {"height": 32, "width": 32, "device": "cpu"}
    make_cache(CacheOptions(model=str(model), dataset_base_path="data", output_path=folder, **size, **more))
    return folder


def from_cache(cache: str, *more: object) -> list[object]:
    return ["train", "--from-cache", cache, "--lora-rank", 2, "--device", "cpu", "--output-path", "out", *more]


def test_what_a_cache_has_settled_is_refused_in_training_from_it(dsctl: Dsctl, model: Path):
    cached(model)
    save_file({"transformer.a.lora_A.weight": torch.zeros(1, 1)}, "some.safetensors")
    settled = [
        ("--caption-dropout", "0.9", "train from the dataset"),
        ("--caption-dropout", "0", "train from the dataset"),
        ("--caption-prefix", "zq", "dsctl cache --caption-prefix"),
        ("--caption-suffix", "zq", "dsctl cache --caption-suffix"),
        ("--column", "prompt=text", "dsctl cache --column"),
        ("--dataset-metadata-path", "data/metadata.csv", "dsctl cache"),
        ("--on-bad-sample", "skip", "dsctl cache"),
        ("--num-frames", "5", "model for videos"),
        ("--fps", "5", "model for videos"),
        ("--tokenizer-path", "/nonexistent", "name the model too"),
        ("--fp8-models", "text_encoder", "leave it out"),
        ("--preset-lora-path", "some.safetensors --preset-lora-model text_encoder", "leave it out"),
        ("--template-model-id-or-path", "data", "TEMPLATE_MODEL"),
    ]

    def check(flag: str, value: str, remedy: str) -> None:
        code = 1 if flag.startswith("--template") else 2
        error, hint = refused(lambda: dsctl(*from_cache("cache", "--max-steps", 1, flag, *value.split())), code)
        assert code == 1 or f"{flag} " in f"{error} ".replace("--fp8-models text_encoder", "--fp8-models ")
        assert remedy in hint

    try_each(settled, check, count=13)
    for flag in ("--allow-outside", "--no-cache", "--cache", "--trust-template"):
        error, _ = refused(lambda flag=flag: dsctl(*from_cache("cache", "--max-steps", 1, flag)), 2)
        assert error.startswith(f"{flag} has no effect")


@pytest.mark.parametrize(("made", "asked", "name"), [("bf16", "no", "bf16"), ("no", "bf16", "no")])
def test_a_cache_has_the_precision_of_the_run(dsctl: Dsctl, model: Path, made: str, asked: str, name: str):
    cached(model, mixed_precision=made)
    error, hint = refused(lambda: dsctl(*from_cache("cache", "--max-steps", 1, "--mixed-precision", asked)), 1)
    assert error == f"cache was made with the precision {name}, but this run has {asked}"
    assert f"--mixed-precision {asked}" in hint and hint.startswith("make it anew: dsctl cache")
    run = dsctl(*from_cache("cache", "--max-steps", 1))
    assert run.code == 0, run.err
    assert json.loads(Path("out/run.json").read_text())["options"]["mixed_precision"] == made


@pytest.mark.parametrize("steps", [("0.01", 5), ("0.05", 10), ("0.4", 1)])
def test_a_warm_up_of_less_than_one_step_is_refused(dsctl: Dsctl, model: Path, steps: tuple[str, int]):
    share, total = steps
    command = words("train", model, max_steps=str(total), lr_scheduler="cosine", lr_warmup_steps=share)
    error, hint = refused(lambda: dsctl(*command), 2)
    assert error.startswith(f"--lr-warmup-steps {share} has no effect") and f"{total} steps" in error
    assert "whole number" in hint


def test_a_warm_up_that_an_epoch_is_too_short_for_is_refused_too(dsctl: Dsctl, model: Path):
    command = words("train", model, max_steps=None, num_epochs="3", lr_scheduler="linear", lr_warmup_steps="0.1")
    assert dsctl(*command).fault(2)[0].startswith("--lr-warmup-steps 0.1 has no effect")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (("train", "--seed", 1, "--seed", 2), "--seed is given twice"),
        (("train", "--seed", 1, "--seed", 1), "--seed is given twice"),
        (("infer", "--prompt", "a", "--prompt", "a"), "--prompt is given twice"),
        (("train", "--cache", "--no-cache"), "--cache and --no-cache are both given"),
        (("doctor", "--quiet", "--verbose"), "--quiet and --verbose are both given"),
        (("doctor", "--hub", "--hub"), "--hub is given twice"),
        (("train", "--template", "a", "--template_model_id_or_path", "b"), "are both given"),
        (("cache", "--device", "cpu", "--device", "cuda"), "--device is given twice"),
        (("train", "sft", "--task", "direct_distill"), "TASK is 'sft', but --task is 'direct_distill'"),
        (("models", "show", "tiny", "--trainable-models", "vae"), "--trainable-models has no effect without --graph"),
        (("template", "init", ""), "NAME is '': an empty text is no path"),
        (("report", ""), "RUNS is ['']: an empty text is no path"),
        (("lora", "info", ""), "FILE is '': an empty text is no path"),
        (("download", "a/b", "--list", "--max-workers", 4), "--max-workers has no effect with --list"),
    ],
)
def test_what_is_given_twice_or_empty_or_for_nothing_is_refused(dsctl: Dsctl, line: tuple[object, ...], error: str):
    assert error in refused(lambda: dsctl(*line), 2)[0]


def test_an_empty_output_path_trains_nowhere(dsctl: Dsctl, model: Path, monkeypatch: pytest.MonkeyPatch):
    assert "--output-path is ''" in refused(lambda: dsctl(*words("train", model, output_path="")), 2)[0]
    Path("run.toml").write_text('output_path = ""\n', encoding="utf-8")
    command = words("train", model, output_path=None)
    assert "output_path in run.toml is ''" in refused(lambda: dsctl(*command, "--config", "run.toml"), 2)[0]
    monkeypatch.setenv("DSCTL_MODEL_BASE_PATH", "")
    command = words("train", model, model="qwen-image")
    assert refused(lambda: dsctl(*command), 2)[0] == "DSCTL_MODEL_BASE_PATH is empty"


def test_what_comes_with_the_package_is_not_downloaded(dsctl: Dsctl, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DSCTL_SKIP_DOWNLOAD", "0")
    error, _ = refused(lambda: dsctl("download", "tiny", "--include", "*.json"), 2)
    assert error.startswith("--include has no effect on tiny, which comes with the package")
    assert dsctl("download", "tiny").code == 0


def test_what_is_about_a_dataset_is_refused_for_a_cache(dsctl: Dsctl, model: Path):
    cached(model)
    lines = [
        ((*SMALL,), "--height has no effect on cache, which is a cache"),
        (("--data-file-keys", "image"), "--data-file-keys has no effect on cache"),
        (("--metadata", "data/metadata.csv"), "--metadata has no effect on cache"),
        (("--model", model), "--model has no effect on the cache cache without --report"),
    ]

    def check(more: tuple[object, ...], problem: str) -> None:
        assert problem in refused(lambda: dsctl("dataset", "validate", "cache", *more), 2)[0]

    try_each(lines, check, count=4)
    error, _ = refused(lambda: dsctl("dataset", "validate", "data", "--model", "tiny", "--fps", 8), 2)
    assert "--fps has no effect on" in error
    extract = (
        "lora",
        "extract",
        "--base",
        model / "transformer",
        "--tuned",
        model,
        "--rank",
        1,
        "--output",
        "a.safetensors",
    )
    error, _ = refused(lambda: dsctl(*extract, "--component", "vae"), 2)
    assert error == "--component has no effect with a --base that is one component, the dit"


def test_epochs_and_steps_exclude_each_other_whatever_their_values(dsctl: Dsctl, model: Path):
    for epochs in ("1", "3"):
        error, _ = refused(lambda epochs=epochs: dsctl(*words("train", model, num_epochs=epochs, max_steps="5")), 2)
        assert error == "--num-epochs and --max-steps are both given"


def test_trigger_words_without_a_lora_are_refused(dsctl: Dsctl, model: Path):
    command = words("train", model, lora_rank=None, trainable_models="dit", trigger_words="zq")
    assert refused(lambda: dsctl(*command), 2)[0] == "--trigger-words has no effect without a LoRA to train"


def test_a_template_input_that_no_template_reads_is_refused(dsctl: Dsctl, model: Path):
    write_template(Path("bright"))
    line = ("infer", "--model", model, *SMALL, "--prompt", "a", "--num-inference-steps", 1, "--device", "cpu")
    given = ("--template", "bright", "--trust-template", "--output", "out/a.png", "--template-inputs")
    error, hint = refused(lambda: dsctl(*line, *given, '{"scale": 1, "scalee": 2}'), 2)
    assert error == "--template-inputs has 'scalee', which the template bright does not read"
    assert hint == "did you mean 'scale'?"
    error, _ = refused(lambda: dsctl(*line, *given, '{"scale": 1, "scale": 2}'), 2)
    assert error.endswith("it has the key 'scale' twice")
    write_template(
        Path("any"),
        **{"scale, **kwargs):\n        return": "scale, **kwargs):\n        kwargs.get('x')\n        return"},
    )
    assert dsctl(*line, *("--template", "any", *given[2:]), '{"scale": 1, "x": 2}').code == 0
    error, _ = refused(
        lambda: dsctl("template", "check", "bright", "--trust-template", "--template-inputs", '{"s": 1}'), 2
    )
    assert error.startswith("--template-inputs has 's'")


def test_a_step_that_an_epoch_cannot_fill_is_warned_of(dsctl: Dsctl, model: Path):
    more = {"batch_size": "8", "gradient_accumulation_steps": "4", "height": "32", "width": "32"}
    run = dsctl(*words("train", model, **more))
    assert run.code == 0, run.err
    warned = [line for line in run.err.splitlines() if "Warning" in line]
    assert warned == [
        "Warning: --batch-size 8 x --gradient-accumulation-steps 4 is more than the 1 sample of an epoch, "
        "so a step has 1; give --dataset-repeat 32 for full steps"
    ]
    run = dsctl(*words("train", model, **more, dataset_repeat="32", output_path="two"))
    assert run.code == 0 and "Warning" not in run.err


@pytest.mark.parametrize(
    ("optimizer", "rate", "warned"),
    [("adamw", "1", "10,000 times"), ("lion", "0.02", "2,000 times"), ("adamw", "0.05", None), ("sgd", "1", None)],
)
def test_a_rate_of_another_optimizer_is_warned_of(optimizer: str, rate: str, warned: str | None):
    text = unusual_rate(OptimizerOptions(optimizer=optimizer, learning_rate=float(rate)), float(rate))
    assert text is None if warned is None else warned in (text or "") and f"--learning-rate {rate}" in (text or "")
    prodigy = unusual_rate(OptimizerOptions(optimizer="prodigy", learning_rate=1e-4), 1e-4)
    assert "leave it out" in (prodigy or "")


def test_the_warning_of_a_rate_is_shown(dsctl: Dsctl, model: Path):
    run = dsctl(*words("train", model, learning_rate="1", height="32", width="32"))
    assert run.code == 0 and "Warning: --learning-rate 1 is 10,000 times the 0.0001" in run.err


def test_the_task_can_be_a_flag(dsctl: Dsctl, model: Path):
    command = words("train", model, max_steps=None, height="32", width="32", lora_rank=None)
    assert dsctl(*command, "--task", "sft:data_process").code == 0
    assert len(CachedDataset(Path("out"))) == 1
    assert dsctl(*command, "sft:data_process", "--task", "sft:data_process", "--batch_size", 1).code == 0


def test_components_in_fp8_are_named_as_the_model_s_weights_are(dsctl: Dsctl, model: Path):
    ids = Path("models/Own/Tiny")
    ids.parent.mkdir(parents=True)
    ids.symlink_to(model)
    parts = ("transformer/*.safetensors", "text_encoder/model*.safetensors", "vae/diffusion_pytorch_model.safetensors")
    by_id = ",".join(f"Own/Tiny:{part}" for part in parts)
    by_path = json.dumps([f"{model}/{part.partition('/')[0]}" for part in parts])
    named: list[tuple[dict[str, str | None], str]] = [
        ({}, "text_encoder,vae"),
        ({}, f'["{model}/text_encoder/model.safetensors", "{model}/vae"]'),
        ({"model": None, "model_id_with_origin_paths": by_id}, ",".join(by_id.split(",")[1:])),
        ({"model": None, "model_paths": by_path}, json.dumps(json.loads(by_path)[1:])),
    ]
    size = {"height": "32", "width": "32"}

    def check(changes: dict[str, str | None], fp8: str) -> None:
        out = f"out{len(list(Path().glob('out*')))}"
        run = dsctl(*words("train", model, **size, **changes, fp8_models=fp8, output_path=out))
        assert run.code == 0, run.err
        found.append(load_file(f"{out}/step-1.safetensors"))

    found: list[dict[str, Any]] = []
    try_each(named, check, count=4)
    assert all((found[0][name] == other[name]).all() for other in found[1:] for name in found[0])


@pytest.mark.parametrize(
    ("fp8", "problem", "remedy"),
    [
        ("Qwen/Qwen-Image:text_encoder/model*.safetensors", "'Qwen/Qwen-Image:text_encoder/model*.safetensors'", "vae"),
        ("dit.transformer_blocks", "names 'dit.transformer_blocks', a part of a component", "name all of it: dit"),
        ("text_encoderr", "unknown component of qwen-image 'text_encoderr'", "did you mean 'text_encoder'?"),
        ('["nowhere/a.safetensors"]', "'nowhere/a.safetensors', which is not among the weights", "dit"),
        ('["a", 3]', "3 is neither a path nor a list of paths", "OWNER/NAME:PATTERN"),
        ('["a"', "this is not JSON", "JSON list of paths"),
    ],
)
def test_a_part_in_fp8_that_is_not_of_the_model_is_named_whole(
    dsctl: Dsctl, model: Path, fp8: str, problem: str, remedy: str
):
    error, hint = refused(lambda: dsctl(*words("train", model, fp8_models=fp8)), 2)
    assert problem in error
    assert remedy in hint


def test_fp8_of_what_a_cache_does_not_run_is_refused(dsctl: Dsctl, model: Path):
    error, _ = refused(lambda: dsctl(*words("cache", model, fp8_models="dit")), 2)
    assert error == "--fp8-models dit has no effect on this cache, which does not load it"
    both = words("train", model, task="sft:data_process", fp8_models="dit,vae", max_steps=None, height="32", width="32")
    assert dsctl(*both).code == 0
