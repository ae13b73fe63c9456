"""Configs of other tools become options: each key is mapped or listed, and nothing is run, hidden or replaced."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dsctl.config import build_options
from dsctl_core.commands.import_config import import_config
from dsctl_core.errors import DsctlError
from dsctl_core.families import families
from dsctl_core.files.toml import toml_comment
from dsctl_core.imports.draft import Draft
from dsctl_core.imports.formats import read_configs
from dsctl_core.imports.presets import preset_of_ids, preset_of_repository
from dsctl_core.imports.shell import read_script
from dsctl_core.options import TrainOptions
from dsctl_core.options.config_file import load_toml
from dsctl_core.options.datasets import DatasetTable
from dsctl_core.options.first_steps import ImportOptions
from tests.dsctl_core.imports.examples import EXAMPLES
from tests.dsctl_core.imports.making import process, write
from tests.dsctl_core.imports.several import SEVERAL

# The options that each example stands for, where they are not simply the value under another name.
TELLING: dict[str, dict[str, Any]] = {
    "diffsynth": {
        "model": "qwen-image",
        "num_epochs": 5,
        "lora_rank": 16,
        "lora_target_modules": ("to_q", "to_k"),
        "use_gradient_checkpointing": True,
        "num_processes": 2,
        "output_path": Path("runs/a"),
    },
    "ai-toolkit": {
        "model": "z-image",
        "lora_rank": 16,
        "lora_alpha": 8,
        "max_steps": 2000,
        "output_path": Path("runs/dog"),
        "fp8_models": ("dit",),
        "dataset": (
            DatasetTable.parse({"path": "data", "caption_dropout": 0.05, "bucket_resolutions": [512, 992]}),
            DatasetTable.parse({"path": "more", "bucket_resolutions": [512]}),
        ),
        "ema_decay": 0.99,
        "caption_prefix": "zqdog",
        "timestep_sampling": "uniform",
        "timestep_shift": 1,
        "loss_weighting": "none",
        "learning_rate": 1e-4,
    },
    "kohya": {
        "batch_size": 2,
        "bucket_resolutions": ("720",),
        "lora_alpha": 1,
        "num_epochs": 16,
        "offload_blocks": 8,
        "timestep_sampling": "logit_normal",
        "timestep_shift": 2.2,
        "weight_decay": 0.1,
        "max_grad_norm": 1e9,
        "model_paths": '["w/dit.safetensors", "w/vae.safetensors", "w/te.safetensors"]',
        "fp8_models": ("dit",),
    },
    "kohya with arguments in TOML": {
        "model": "flux1-dev",
        "width": 512,
        "height": 512,
        "optimizer": "prodigy",
        "max_steps": 900,
        "timestep_shift": 1,
        "dataset_repeat": 2,
    },
    "diffusion-pipe": {
        "model": "wan2.1-t2v-1.3b",
        "data_file_keys": ("video",),
        "num_frames": 33,
        "bucket_resolutions": ("960",),
        "lr_scheduler": "constant_with_warmup",
        "lr_warmup_steps": 100,
        "use_gradient_checkpointing_offload": True,
        "optimizer": "adamw",
        "timestep_sampling": "logit_normal",
        "num_epochs": 10,
    },
}
EVERY = EXAMPLES | {f"{tool}, several datasets": files for tool, (files, *_) in SEVERAL.items()}


def keys_of(draft: Draft) -> Counter[tuple[str, str]]:
    """Return every key that is mapped or listed, by its file, with how often."""
    mapped = draft.mapped_settings()
    assert len(mapped) == draft.mapped
    return Counter(
        (each.file.name, each.key) for each in (*mapped, *(lost.setting for lost in draft.without_counterpart))
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_imported_config_is_read_by_train_with_the_values_that_the_tool_would_have(name: str):
    result = import_config(ImportOptions(files=write(EXAMPLES[name]), output="made/run.toml"))
    options = build_options(TrainOptions, {}, Path("made/run.toml"))
    assert result.draft.missing == {}
    assert {option: options.value_of(option) for option in TELLING[name]} == TELLING[name]
    assert {*options.given_names()} == {*result.draft.options}


@pytest.mark.parametrize("name", EVERY)
def test_no_key_is_dropped_or_counted_twice(name: str):
    result = import_config(ImportOptions(files=write(EVERY[name])))
    found = keys_of(result.draft)
    assert {key: count for key, count in found.items() if count > 1} in ({}, {("train.sh", "num_epochs"): 2})
    text = Path("run.toml").read_text()
    assert [key for _, key in found if key not in text] == []
    assert {file: sum(n for (name, _), n in found.items() if name == file) for file in EVERY[name]} == {
        file: count_of_settings(file, source) for file, source in EVERY[name].items()
    }


def count_of_settings(file: str, source: str) -> int:
    """Return how many settings an example has: values of a document; flags, other commands and exports of a script."""
    if file.endswith(".sh"):
        training = source.partition("RANK=")[2] or source
        others = sum(source.count(start) for start in ("\nmodelscope", "\nexport ", "\nCUDA_VISIBLE_DEVICES="))
        return len(re.findall(r"--\w", training)) + others
    return leaves(yaml.safe_load(source) if file.endswith(".yaml") else load_toml(Path(file), "FILE"))


def leaves(value: Any) -> int:
    """Return the number of values in tables inside tables; a list of anything but tables is one value."""
    if isinstance(value, dict):
        return sum(map(leaves, value.values()))
    tables = isinstance(value, list) and all(isinstance(each, dict) for each in value)
    return sum(map(leaves, value)) if tables else 1


@pytest.mark.parametrize(
    ("network", "expected", "gone"),
    [
        (
            "{type: lokr, linear: 32, linear_alpha: 32, lokr_full_rank: true, lokr_factor: 8}",
            {"network": "lokr", "lokr_full_matrix": True, "lokr_factor": 8},
            {"network.linear", "network.linear_alpha"},
        ),
        (
            "{type: lokr, linear: 4, lokr_factor: -1}",
            {"network": "lokr", "lora_rank": 4, "lora_alpha": 1.0},
            set(),
        ),
        ("{type: lora, linear: 4, lokr_full_rank: true, lokr_factor: -1}", {"lora_rank": 4, "lora_alpha": 1.0}, set()),
    ],
)
def test_a_lokr_keeps_its_factor_and_has_no_rank_where_it_is_whole(network: str, expected: dict, gone: set[str]):
    model = "model: {name_or_path: Qwen/Qwen-Image}, training_folder: o, datasets: [{folder_path: d}]"
    text = f"job: train\nconfig: {{name: a, process: [{{type: sd_trainer, network: {network}, {model}}}]}}\n"
    draft = import_config(ImportOptions(files=write({"a.yaml": text}), output="made/run.toml")).draft
    names = ("network", "lora_rank", "lora_alpha", "lokr_full_matrix", "lokr_factor", "trainable_models")
    assert {name: draft.options[name] for name in names if name in draft.options} == expected
    lost = {each.setting.key for each in draft.without_counterpart}
    assert {name for name in gone if any(key.endswith(name) for key in lost)} == gone
    assert build_options(TrainOptions, {}, Path("made/run.toml")).adapter.kind == expected.get("network", "lora")


@pytest.mark.parametrize(
    ("files", "rank"),
    [
        (
            EXAMPLES["kohya"]
            | {"train.sh": EXAMPLES["kohya"]["train.sh"].replace("_dim 16", "_dim 16 --network_alpha 0")},
            16,
        ),
        ({"a.yaml": process(network={"type": "lora", "linear": 8, "linear_alpha": 0})}, 8),
        ({"a.yaml": process(network={"type": "lora", "alpha": 0.0, "linear": 4})}, 4),
    ],
)
def test_an_alpha_of_zero_is_the_rank_as_in_the_networks_it_comes_from(files: dict[str, str], rank: int):
    draft = read_configs(write(files))
    assert [float(draft.options[name]) for name in ("lora_rank", "lora_alpha")] == [rank, rank]
    assert not [lost for lost in draft.without_counterpart if "alpha" in lost.setting.key]


def test_a_key_that_nobody_knows_is_listed_with_its_value_wherever_it_stands():
    text = EXAMPLES["ai-toolkit"]["dog.yaml"].replace("train:", "train:\n        what_is_this: [3, x]")
    (file,) = write({"a.yaml": text})
    (lost,) = (each for each in read_configs([file]).without_counterpart if "what_is_this" in each.setting.key)
    assert (lost.setting.key, lost.value) == ("config.process[0].train.what_is_this", [3, "x"])


@pytest.mark.parametrize("name", ["kohya with arguments in TOML", "diffusion-pipe"])
def test_a_secret_is_neither_written_nor_shown(name: str):
    result = import_config(ImportOptions(files=write(EXAMPLES[name])))
    assert "_secret" in str(EXAMPLES[name])
    assert "_secret" not in Path("run.toml").read_text() + str(result.facts()) + "".join(result.lines())


def test_the_files_that_a_config_names_are_read_with_it():
    first, *_ = write(EXAMPLES["diffusion-pipe"])
    draft = read_configs([first])
    assert draft.options["dataset_base_path"] == "clips"


UNKNOWN = {
    "a.yaml": "job: train\n",
    "b.yaml": "config: {process: [3]}\n",
    "bomb.yaml": "a: &a [1]\nb: *a\nconfig: {process: [{type: x}]}\n",
    "broken.yaml": "a: [\n",
    "deep.yaml": "a: " + "[" * 3000,
    "run.toml": 'model = "tiny"\nlora_rank = 3\n',
    "broken.toml": "a = \n",
    "a.sh": "echo hello\n",
    "binary.sh": "a\0b",
    "loop.sh": "for x in 1 2; do accelerate launch train.py --dataset_base_path $x; done\n",
    "substitution.sh": "accelerate launch train.py --dataset_base_path $(pwd)\n",
    "quote.sh": "accelerate launch train.py --dataset_base_path 'a\n",
    "two.sh": "python train.py --dataset_base_path a\npython train.py --dataset_base_path b\n",
    "a.json": "[]",
    "nowhere.toml": None,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_no_config_is_refused_in_one_line_and_nothing_is_written(name: str):
    text = UNKNOWN[name]
    if text is not None:
        Path(name).write_text(text)
    with pytest.raises(DsctlError) as caught:
        import_config(ImportOptions(files=[name], output="out.toml"))
    assert name in caught.value.problem
    assert caught.value.hint
    assert not Path("out.toml").exists()


def test_files_of_two_tools_are_refused_and_so_is_an_output_that_is_there():
    files = [*write(EXAMPLES["ai-toolkit"]), *write(EXAMPLES["kohya"])]
    with pytest.raises(DsctlError, match="the files are of ai-toolkit and kohya"):
        import_config(ImportOptions(files=files))
    Path("mine.toml").write_text("mine")
    with pytest.raises(DsctlError, match="already exists"):
        import_config(ImportOptions(files=files[:1], output="mine.toml"))
    assert Path("mine.toml").read_text() == "mine"


def test_what_a_model_does_not_take_is_listed_and_not_written():
    text = EXAMPLES["diffsynth"]["train.sh"].replace(
        "--initialize_model_on_cpu", "--num_frames 81 --extra_inputs odd_one"
    )
    draft = import_config(ImportOptions(files=write({"a.sh": text}))).draft
    lost = {each.setting.key: each.reason for each in draft.without_counterpart}
    assert "makes pictures, not clips" in lost["num_frames"]
    assert "odd_one is no input" in lost["extra_inputs"]


def test_a_part_that_is_a_component_in_the_original_code_is_named_by_its_modules():
    owner = "Wan-AI/Wan2.1-VACE-1.3B"
    ids = f"{owner}:diffusion_pytorch_model*.safetensors,{owner}:Wan2.1_VAE.pth"
    words = f"python train.py --dataset_base_path data --output_path out --model_id_with_origin_paths {ids}"
    words += " --data_file_keys video,vace_video --extra_inputs vace_video --remove_prefix_in_ckpt pipe.vace."
    part = ("dit.vace_blocks", "dit.vace_patch_embedding")
    cases: dict[str, dict[str, Any]] = {
        "--trainable_models vace": {"trainable_models": part, "lora_base_model": None},
        "--lora_base_model vace --lora_rank 8": {"trainable_models": None, "lora_base_model": "dit", "lora_rank": 8},
    }
    for number, (more, wanted) in enumerate(cases.items()):
        output = Path(f"{number}.toml")
        files = write({f"{number}.sh": f"{words} {more}\n"})
        lost = import_config(ImportOptions(files=files, output=output)).draft.without_counterpart
        options = build_options(TrainOptions, {}, output)
        assert options.weights.model == "wan2.1-vace-1.3b"
        assert {name: options.value_of(name) for name in wanted} == wanted
        assert [each.setting.key for each in lost] == ["remove_prefix_in_ckpt"]


def test_what_is_missing_is_named_and_stands_in_the_file_as_a_comment():
    (file,) = write({"a.yaml": "config: {process: [{type: sd_trainer, network: {linear: 4}}]}\n"})
    result = import_config(ImportOptions(files=[file]))
    assert result.draft.missing.keys() == {"model", "dataset_base_path", "output_path"}
    assert '# model = ""' in Path("run.toml").read_text().splitlines()


def test_every_published_repository_is_its_preset():
    presets = [preset for family in families().values() for preset in family.presets if preset.model_id]
    assert len(presets) > 15
    for preset in presets:
        assert preset_of_repository(str(preset.model_id)) is preset
        ids = ",".join(f"{preset.repository(part)}:{pattern}" for part, pattern in reversed(preset.files.items()))
        assert preset_of_ids(ids) is preset
    assert preset_of_ids("Own/Tuned:transformer/*,Qwen/Qwen-Image:vae/*") is None


PLAIN = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)


@given(st.lists(PLAIN, min_size=1, max_size=6))
def test_words_of_a_script_are_those_that_a_shell_reads(words: list[str]):
    text = f"echo {' '.join(map(shlex.quote, words))} # a comment\\\n"
    (command, *others) = read_script(text, Path("a.sh")).commands
    assert command.words == ["echo", *words]
    assert others == []


def test_variables_continuations_and_quotes_are_read_as_bash_does():
    text = 'A=1 B="x y"\nexport C=3\nrun "$A${B}" $B \\\n  ${D:-e} \'$A\' a#b "\\$A" | tee log && D=4 next; last\n'
    first, tee, second, last = read_script(text, Path("a.sh")).commands
    assert first.words == ["run", "1x y", "x", "y", "e", "$A", "a#b", "$A"]
    assert (tee.words, second.words, second.environment, last.words) == (["tee", "log"], ["next"], {"D": "4"}, ["last"])


@given(st.text(max_size=30))
def test_a_comment_of_any_text_is_one_line(text: str):
    assert len(toml_comment(text).splitlines()) == 1


@pytest.mark.parametrize(("word", "expected"), [("head", "head"), ("chunk", "every"), ("slide", None)])
def test_musubi_s_chunks_of_a_video_are_every_clip(word: str, expected: str | None):
    data = f'[[datasets]]\nvideo_directory = "clips"\ntarget_frames = [17]\nframe_extraction = "{word}"\n'
    script = EXAMPLES["kohya"]["train.sh"]
    draft = import_config(ImportOptions(files=write({"data.toml": data, "train.sh": script})[::-1])).draft
    assert draft.options.get("clip_extraction") == expected
    lost = {each.setting.key: each.reason for each in draft.without_counterpart}
    assert ("datasets[0].frame_extraction" in lost or any("frame_extraction" in key for key in lost)) == (not expected)
