"""Options become flags, and run.toml fills in what no flag says."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from dsctl.argv import checked_argv
from dsctl.config import build_options, merged, read_config
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.options import DatasetValidateOptions, InferOptions, LoraFile, Options, TrainOptions
from tests.dsctl.running import Dsctl

NEEDED = {"model": "m", "dataset_base_path": "d", "output_path": "o", "lora_rank": 4}


def write(text: str) -> Path:
    file = Path("run.toml")
    file.write_text(text, encoding="utf-8")
    return file


def parse(text: str, **flags: Any) -> TrainOptions:
    return build_options(TrainOptions, {**NEEDED, **flags}, write(text))


@pytest.mark.parametrize(
    ("command", "options"),
    [("train", TrainOptions), ("infer", InferOptions), ("dataset validate", DatasetValidateOptions)],
)
def test_every_option_is_a_flag_with_its_description(dsctl: Dsctl, command: str, options: type[Options]):
    shown = " ".join(dsctl(*command.split(), "--help").out.split())
    assert len(options.flat_fields()) > 5
    for name, field in options.flat_fields().items():
        written = name.upper() if name in ("task", "path") else f"--{name.replace('_', '-')}"
        assert f" {written} " in shown.replace(",", " ")
        assert field.description
        # Lines also end within a flag, after its dash.
        assert "".join(field.description.split()) in "".join(shown.split())


@pytest.mark.parametrize(("command", "options"), [("train", TrainOptions), ("infer", InferOptions)])
def test_help_opens_with_an_example_that_works_and_a_dozen_options_and_shows_each_option_once(
    dsctl: Dsctl, command: str, options: type[Options]
):
    shown = dsctl(command, "--help").out
    opening, _, rest = shown.partition("\nMost used:\n")
    most_used, _, others = rest.partition("\n\n")
    module = importlib.import_module(f"dsctl.commands.{command}")
    assert module.EXAMPLE.replace("\n", "\n  ") in opening
    flags = ["--" + name.replace("_", "-") for name in module.MOST_USED]
    assert re.findall(r"^  (--[\w-]+)", most_used, re.MULTILINE) == flags
    assert 10 <= len(flags) <= 14
    everything = re.findall(r"^  (--[\w-]+)", most_used + "\n" + others, re.MULTILINE)
    assert len(everything) == len(set(everything)) > 30
    _, _, *words = shlex.split(module.EXAMPLE.replace("\\\n", ""))
    read = checked_argv(words, get_parameters(command), f"dsctl {command}")
    given = {word[2:].replace("-", "_"): value for word, value in zip(read[::2], read[1::2], strict=True)}
    assert options.model_validate({**given, "lora": [given["lora"]]} if "lora" in given else given).given_names()


def get_parameters(command: str) -> list[Any]:
    """Return the parameters of a command as the parser has them."""
    module = importlib.import_module(f"dsctl.commands.{command}")
    app = typer.Typer(add_completion=False)
    app.command()(getattr(module, command))
    return typer.main.get_command(app).params


def test_numbers_and_pairs_can_be_lists_in_a_file():
    options = parse('bucket_resolutions = [512, 1024]\ncolumn = ["prompt=caption", "image=file"]\n')
    assert options.data.resolutions == (512, 1024)
    assert options.data.columns == {"prompt": "caption", "image": "file"}


def test_flags_reach_the_command_as_the_model_reads_them(dsctl: Dsctl, monkeypatch: pytest.MonkeyPatch):
    seen: list[TrainOptions] = []

    class Result:
        checkpoint, steps, final_loss, seconds, output_path = Path("o/step-3.safetensors"), 3, 0.25, 1.25, Path("o")
        is_main_process, skipped, mirror = True, 2, None

    monkeypatch.setattr("dsctl_core.commands.train.train", lambda options, progress: seen.append(options) or Result())
    words = (
        "train sft --model m --dataset_base_path d --output-path=o --lora_rank 8 --trainable-models text_encoder,vae"
    )
    run = dsctl(*words.split(), "--use_gradient_checkpointing", "--learning-rate", "1e-3", "--json")
    assert run.code == 0
    assert run.json == {
        "checkpoint": "o/step-3.safetensors",
        "steps": 3,
        "final_loss": 0.25,
        "seconds": 1.2,
        "output_path": "o",
        "skipped_rows": 2,
    }
    expected = {"lora_rank": 8, "trainable_models": ("text_encoder", "vae"), "learning_rate": 1e-3, "task": "sft"}
    expected |= {"use_gradient_checkpointing": True, "model": "m"}
    assert {name: seen[0].value_of(name) for name in expected} == expected
    assert (seen[0].data.dataset_base_path, seen[0].output.output_path) == (Path("d"), Path("o"))


def test_a_repeated_flag_gathers_its_values(dsctl: Dsctl, monkeypatch: pytest.MonkeyPatch):
    seen: list[InferOptions] = []

    class Result:
        files, grid, seconds, clips = [Path("a.png")], None, 0.5, False

    monkeypatch.setattr("dsctl_core.commands.infer.infer", lambda options, progress: seen.append(options) or Result())
    run = dsctl("infer", "--model", "m", "--prompt", "a_b", "--lora", "x.safetensors:0.5", "--lora", "y.safetensors")
    assert run.code == 0
    assert seen[0].lora == (LoraFile(Path("x.safetensors"), 0.5), LoraFile(Path("y.safetensors")))
    assert seen[0].prompt == "a_b"


def test_names_separated_by_commas_and_names_of_a_repeated_flag_are_the_same(
    dsctl: Dsctl, monkeypatch: pytest.MonkeyPatch
):
    seen: list[TrainOptions] = []
    monkeypatch.setattr("dsctl_core.commands.train.train", lambda options, progress: seen.append(options) or {}["stop"])
    needed = "--model m --dataset-base-path d --output-path o --lora-rank 8"
    words = f"train {needed} --trainable-models dit,vae".split()
    dsctl(*words)
    dsctl(*words[:-1], "dit", "--trainable-models", "vae")
    dsctl(*words[:-1], "dit", "--trainable-models", "")
    assert [options.training.trainable_models for options in seen] == [("dit", "vae"), ("dit", "vae")]


def test_the_file_fills_in_what_no_flag_says():
    options = parse("seed = 3\nbatch_size = 2\nuse_gradient_checkpointing = true\n", batch_size="5")
    training = options.training
    assert (training.seed, training.batch_size, training.use_gradient_checkpointing) == (3, 5, True)


def test_a_flag_can_switch_off_what_the_file_switches_on(dsctl: Dsctl, monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []
    monkeypatch.setattr("dsctl_core.commands.train.train", lambda options, progress: seen.append(options) or {}["stop"])
    write('model = "m"\ndataset_base_path = "d"\noutput_path = "o"\nlora_rank = 4\nfind_unused_parameters = true\n')
    dsctl("train", "--config", "run.toml")
    dsctl("train", "--config", "run.toml", "--no-find-unused-parameters")
    assert [options.training.find_unused_parameters for options in seen] == [True, False]


def test_names_are_written_as_text_or_as_a_list():
    assert parse('lora_target_modules = "to_q, to_k"').adapter.lora_target_modules == ("to_q", "to_k")
    assert parse('lora_target_modules = ["to_q", "to_k"]').adapter.lora_target_modules == ("to_q", "to_k")


def test_model_paths_are_written_as_json_or_as_a_list():
    file = write('model_paths = ["dit.safetensors", ["a.safetensors", "b.safetensors"]]')
    options = build_options(TrainOptions, {name: value for name, value in NEEDED.items() if name != "model"}, file)
    paths = options.weights.model_paths
    assert json.loads(paths or "") == ["dit.safetensors", ["a.safetensors", "b.safetensors"]]


def test_lora_files_are_written_as_a_list():
    values = read_config(InferOptions, write('lora = ["a.safetensors:0.5", "b.safetensors"]')).values
    assert values["lora"] == (LoraFile(Path("a.safetensors"), 0.5), LoraFile(Path("b.safetensors")))
    with pytest.raises(UsageError, match="lora in run.toml is 'a.safetensors'"):
        read_config(InferOptions, write('lora = "a.safetensors"'))
    with pytest.raises(UsageError, match="3 is no text"):
        read_config(InferOptions, write("lora = [3]"))


@pytest.mark.parametrize(
    ("text", "flags", "gone"),
    [
        ("num_epochs = 5", {"max_steps": "10"}, "num_epochs"),
        ("max_steps = 5", {"num_epochs": "10"}, "max_steps"),
        ("max_pixels = 4096", {"height": "64", "width": "64"}, "max_pixels"),
        ('model_paths = "[]"', {}, "model_paths"),
    ],
)
def test_a_flag_beats_the_key_that_it_excludes(text: str, flags: dict[str, str], gone: str):
    file = write(text if "[]" not in text else "model_paths = '[\"a\"]'")
    assert gone not in merged(TrainOptions, {**NEEDED, **flags}, read_config(TrainOptions, file)).values


def test_two_keys_that_exclude_each_other_are_refused():
    with pytest.raises(UsageError, match="--num-epochs and --max-steps are both given"):
        parse("num_epochs = 5\nmax_steps = 5")


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        ("lora_rnak = 4", "unknown key 'lora_rnak' in run.toml", "did you mean 'lora_rank'?"),
        ("lora-rank = 4", "unknown key 'lora-rank' in run.toml", "did you mean 'lora_rank'?"),
        ("json = true", "unknown key 'json' in run.toml", "underscores"),
        ('seed = "3"', "seed in run.toml is '3', which is not a whole number", "a whole number from 0"),
        ("seed = 1.5", "seed in run.toml is 1.5, which is not a whole number", "a whole number from 0"),
        ("seed = true", "seed in run.toml is True, which is not a whole number", "a whole number from 0"),
        ("seed = -1", "seed in run.toml is -1, which is too small", "a whole number from 0"),
        ("lora_rank = 0", "lora_rank in run.toml is 0, which is too small", "from 1 to 4096"),
        ('learning_rate = "fast"', "learning_rate in run.toml is 'fast', which is not a number", "above 0"),
        ("learning_rate = nan", "learning_rate in run.toml is nan, which is not a number", "above 0"),
        ("find_unused_parameters = 1", "find_unused_parameters in run.toml is 1, which is not true", "true or false"),
        ('find_unused_parameters = "yes"', "is 'yes', which is not true or false", "true or false"),
        ("output_path = 3", "output_path in run.toml is 3, which is not a path", "a path"),
        ('lora_target_modules = ["a", 3]', "which is not names separated by commas", "names"),
        ('mixed_precision = "bf32"', "mixed_precision in run.toml is 'bf32', which is unknown", "no, bf16, fp16"),
        ("[data]\nheight = 4", "data in run.toml", "without [...]"),
        ("seed = 1979-05-27", "seed in run.toml is a date", "without [...]"),
        ("seed = ", "--config run.toml is not TOML", "lora_rank = 16"),
        ("seed = 1\nseed = 2", "--config run.toml is not TOML", "lora_rank = 16"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(text: str, problem: str, hint: str):
    with pytest.raises(UsageError) as caught:
        read_config(TrainOptions, write(text))
    assert problem in caught.value.problem
    assert hint in (caught.value.hint or "")


def test_a_file_that_cannot_be_read_is_named():
    with pytest.raises(DsctlError, match="--config none.toml does not exist"):
        read_config(TrainOptions, Path("none.toml"))
    with pytest.raises(DsctlError, match="--config . cannot be read"):
        read_config(TrainOptions, Path())
    Path("latin.toml").write_bytes("# caf\u00e9".encode("latin-1"))
    with pytest.raises(UsageError, match="--config latin.toml is not TOML"):
        read_config(TrainOptions, Path("latin.toml"))
