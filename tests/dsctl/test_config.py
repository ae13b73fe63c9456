"""The run.json of an earlier run as --config: its values, and which of them were given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from dsctl.config import build_options
from dsctl_core.errors import UsageError
from dsctl_core.options import CacheOptions, LoraFile, TrainOptions
from dsctl_core.options.run_file import FOLLOWS, OF_ONE_CALL
from tests.dsctl.running import Dsctl

NEEDED: dict[str, Any] = {"model": "m", "dataset_base_path": "d", "output_path": "o", "lora_rank": 4}


def write_run(options: TrainOptions, /, **changes: Any) -> Path:
    """Write what a run with `options` keeps of them."""
    file = Path("run.json")
    resolved = {**options.flat_values("json"), "learning_rate": 3e-4, "mixed_precision": "bf16"}
    about = {"command": "train", "options": resolved, "given": options.given_names()}
    file.write_text(json.dumps({**about, **changes}), encoding="utf-8")
    return file


def again(file: Path, **flags: Any) -> TrainOptions:
    return build_options(TrainOptions, flags, file)


GIVEN: dict[str, st.SearchStrategy[Any]] = {
    "max_steps": st.integers(1, 9),
    "seed": st.integers(0, 9),
    "lora": st.lists(st.sampled_from(["a:b.safetensors:0.5", "c.safetensors", "d:2"]), max_size=2),
    "template": st.sampled_from(["dir", "dir:w.safetensors", "owner/name@v1:"]),
    "optimizer_args": st.just(["betas=(0.9,0.99)", "eps=1e-6"]),
    "trainable_models": st.lists(st.sampled_from(["text_encoder", "vae"]), min_size=1, max_size=2, unique=True),
    "track": st.just(["csv"]),
    "bucket_resolutions": st.just(["512", "1024"]),
    "cache": st.booleans(),
    "preset_lora_path": st.just("p.safetensors"),
    "learning_rate": st.just(3e-4),
}


@given(st.fixed_dictionaries({}, optional=GIVEN))
def test_the_options_of_a_run_are_set_again_as_they_were_given(values: dict[str, Any]):
    before = TrainOptions(**NEEDED, **values)
    after = again(write_run(before))
    assert after.given_names() == before.given_names()
    assert after.flat_values() == {**before.flat_values(), "learning_rate": 3e-4, "mixed_precision": "bf16"}


def test_tables_of_datasets_are_set_again_and_a_folder_takes_their_place():
    tables = [
        {"path": "a", "weight": 0.5, "bucket_resolutions": [64]},
        {"path": "b", "weight": 2, "regularization": True},
    ]
    before = TrainOptions(model="m", output_path="o", lora_rank=4, dataset=tables, max_steps=5)
    Path("run.toml").write_text(
        'model = "m"\noutput_path = "o"\nlora_rank = 4\nmax_steps = 5\n'
        '[[dataset]]\npath = "a"\nweight = 0.5\nbucket_resolutions = [64]\n'
        '[[dataset]]\npath = "b"\nweight = 2\nregularization = true\n',
        encoding="utf-8",
    )
    for file in (write_run(before), Path("run.toml")):
        assert again(file).data.dataset == before.data.dataset
        assert "dataset" in again(file).given_names()
        assert again(file, dataset_base_path="c").data.dataset == ()
    Path("run.toml").write_text('[dataset]\npath = "a"\n', encoding="utf-8")
    with pytest.raises(UsageError, match="dataset in run.toml is a table") as caught:
        again(Path("run.toml"))
    assert caught.value.hint == "write [[dataset]]"


def test_what_was_left_out_excludes_nothing_and_what_was_given_does():
    file = write_run(TrainOptions(**NEEDED, max_steps=5))
    assert again(file).training.max_steps == 5
    assert again(file, num_epochs="1").training.max_steps is None
    cached = again(file, from_cache="c")
    assert cached.data.dataset_base_path is None and not cached.given("caption_dropout")


def test_flags_resolve_again_what_followed_from_the_options_that_they_change():
    assert FOLLOWS.keys() == {"learning_rate", "mixed_precision"}
    file = write_run(TrainOptions(**NEEDED))
    assert again(file).optim.learning_rate == 3e-4
    assert again(file, optimizer="lion").optim.learning_rate is None
    assert again(file, device="cpu").training.mixed_precision is None
    file = write_run(TrainOptions(**NEEDED, learning_rate=3e-4))
    assert again(file, optimizer="lion").optim.learning_rate == 3e-4


def test_what_belongs_to_one_call_is_not_taken_over():
    options = TrainOptions(**NEEDED, resume="latest", allow_changed=["seed"], template="t", trust_template=True)
    after = again(write_run(options))
    assert set(OF_ONE_CALL) <= set(TrainOptions.flat_fields())
    assert not set(OF_ONE_CALL) & set(after.given_names())
    assert after.output.resume is None and not after.templates.trust_template


def test_loras_with_colons_in_their_names_are_the_same_again():
    options = TrainOptions(**NEEDED, lora=[LoraFile(Path("a:0.5"), 0.25)])
    assert again(write_run(options)).adapter.lora == (LoraFile(Path("a:0.5"), 0.25),)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"command": "infer"}, "is of `dsctl infer`"),
        ({"command": None}, "is not of a run"),
        ({"given": None}, "does not say which options were given"),
        ({"options": []}, "does not say which options were given"),
        ({"options": {"lora_rnak": 3}}, "unknown key 'lora_rnak' in run.json"),
        ({"options": {"lora_rank": "3"}}, "lora_rank in run.json is '3', which is not a whole number"),
    ],
)
def test_a_file_that_is_no_run_of_this_command_is_refused(changes: dict[str, Any], problem: str):
    with pytest.raises(UsageError) as caught:
        again(write_run(TrainOptions(**NEEDED), **changes))
    assert problem in caught.value.problem


def test_a_training_s_run_json_is_no_configuration_of_a_cache():
    with pytest.raises(UsageError, match="is of `dsctl train`"):
        build_options(CacheOptions, {}, write_run(TrainOptions(**NEEDED)), "cache")


@pytest.mark.parametrize("words", [("train", "--config", ""), ("train", "--config=")])
def test_an_empty_config_is_refused(dsctl: Dsctl, words: tuple[str, ...]):
    assert dsctl(*words).fault(2)[0] == "--config is empty"


@pytest.mark.usefixtures("files")
def test_a_run_is_run_again_from_its_own_run_json(dsctl: Dsctl, model: Path):
    first = dsctl(
        *("train", "--model", model, "--dataset-base-path", "data", "--lora-rank", 2, "--max-steps", 2),
        *("--height", 32, "--width", 32, "--device", "cpu", "--output-path", "one"),
    )
    assert first.code == 0, first.err
    assert "already holds a run" in dsctl("train", "--config", "one/run.json").fault(1)[0]
    second = dsctl("train", "--config", "one/run.json", "--output-path", "two")
    assert second.code == 0, second.err
    one, two = (json.loads(Path(folder, "run.json").read_text()) for folder in ("one", "two"))
    assert one["given"] == two["given"]
    assert {**one["options"], "output_path": "two"} == two["options"]
    weights = [load_file(f"{folder}/step-2.safetensors") for folder in ("one", "two")]
    assert weights[0].keys() == weights[1].keys() and len(weights[0])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_key_may_have_the_other_spelling_of_its_flag_but_not_both():
    file = Path("run.toml")
    file.write_text('template_model_id_or_path = "owner/name:"\n', encoding="utf-8")
    assert str(build_options(TrainOptions, NEEDED, file).templates.template) == "owner/name:"
    file.write_text('template = "a"\ntemplate_model_id_or_path = "b"\n', encoding="utf-8")
    with pytest.raises(UsageError, match="template_model_id_or_path in run.toml is template, which is there too"):
        build_options(TrainOptions, NEEDED, file)


def test_a_cache_on_the_command_line_beats_all_that_is_about_reading_the_dataset_in_the_file():
    file = Path("run.toml")
    file.write_text('dataset_base_path = "d"\ncolumn = "prompt=text"\ncaption_prefix = "zq"\n', encoding="utf-8")
    flags = {"from_cache": "c", "output_path": "o", "lora_rank": 4}
    options = build_options(TrainOptions, flags, file)
    assert options.given_names() == ["from_cache", "lora_rank", "output_path"]
    with pytest.raises(UsageError, match="--column has no effect on training from a cache"):
        build_options(TrainOptions, {**flags, "column": "prompt=text"}, file)
