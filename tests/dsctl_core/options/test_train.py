"""Training options that contradict each other, or would have no effect, are refused."""

from __future__ import annotations

from typing import Any

import pytest

from dsctl_core.errors import UsageError
from dsctl_core.options import TASKS, TrainOptions

# The options of the spec's training scripts (page 003), by name.
SPEC = [
    "dataset_base_path",
    "dataset_metadata_path",
    "dataset_repeat",
    "dataset_num_workers",
    "data_file_keys",
    "model_paths",
    "model_id_with_origin_paths",
    "extra_inputs",
    "fp8_models",
    "learning_rate",
    "num_epochs",
    "trainable_models",
    "find_unused_parameters",
    "weight_decay",
    "task",
    "output_path",
    "remove_prefix_in_ckpt",
    "save_steps",
    "lora_base_model",
    "lora_target_modules",
    "lora_rank",
    "lora_checkpoint",
    "preset_lora_path",
    "preset_lora_model",
    "use_gradient_checkpointing",
    "use_gradient_checkpointing_offload",
    "gradient_accumulation_steps",
    "height",
    "width",
    "max_pixels",
]


def build(**values: Any) -> TrainOptions:
    return TrainOptions(**{"model": "m", "dataset_base_path": "d", "output_path": "o", "lora_rank": 4, **values})


def test_every_option_of_the_spec_is_there_by_its_name():
    assert set(SPEC) - set(TrainOptions.flat_fields()) == set()


def test_the_spec_s_command_lines_are_accepted():
    build(
        model=None,
        model_id_with_origin_paths="Owner/Name:transformer/*.safetensors,Owner/Name:vae/*.safetensors",
        lora_rank=None,
        trainable_models="text_encoder,controlnet",
        lora_base_model="dit",
        lora_target_modules="to_q,to_k,to_v",
        remove_prefix_in_ckpt="pipe.dit.",
        max_pixels=1048576,
        dataset_repeat=50,
        num_epochs=2,
        learning_rate=1e-5,
        use_gradient_checkpointing=True,
        find_unused_parameters=True,
    )


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_accepted(task: str):
    assert build(task=task).task == task


@pytest.mark.parametrize(
    ("values", "problem", "hint"),
    [
        ({"task": "stf"}, "unknown task 'stf'", "did you mean 'sft'?"),
        ({"lora_rank": None, "lora_alpha": 8}, "--lora-alpha has no effect without a LoRA", "--lora-rank"),
        ({"preset_lora_model": "dit"}, "--preset-lora-model has no effect without a LoRA", "--preset-lora-path"),
        ({"remove_prefix_in_ckpt": "pipe.dti."}, "which no trained weight's name begins with", "give pipe.dit."),
        ({"remove_prefix_in_ckpt": "pipe.vae."}, "which no trained weight's name begins with", "give pipe.dit."),
        ({"model": None}, "no model is given", "--model"),
        ({"model_paths": '["a"]'}, "--model and --model-paths are both given", "one of them"),
        ({"height": 64}, "--height 64 is given without --width", "--width too"),
        ({"width": 64}, "--width 64 is given without --height", "--height too"),
        ({"height": 64, "width": 64, "max_pixels": 64}, "--height and --max-pixels are both given", "one of them"),
        ({"max_steps": 5, "num_epochs": 5}, "--num-epochs and --max-steps are both given", "one of them"),
        ({"use_gradient_checkpointing_offload": True}, "has no effect without", "--use-gradient-checkpointing"),
        ({"model": None, "model_paths": "[x]"}, "this is not JSON", "--model-paths"),
        ({"model": None, "model_paths": "{}"}, "not a JSON list of paths", "--model-paths"),
        ({"model": None, "model_paths": "[[]]"}, "[] is neither a path nor a list of paths", "--model-paths"),
        ({"model": None, "model_paths": "[3]"}, "3 is neither a path nor a list of paths", "--model-paths"),
        ({"model": None, "model_id_with_origin_paths": "a/b"}, "'a/b' does not have the form OWNER/NAME:PATTERN", ""),
        ({"model": None, "model_id_with_origin_paths": "a/b:x,:y"}, "':y' does not have the form", ""),
    ],
)
def test_what_contradicts_or_has_no_effect_is_refused(values: dict, problem: str, hint: str):
    with pytest.raises(UsageError) as caught:
        build(**values)
    assert problem in caught.value.problem
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["lora_rank", "lora_target_modules", "lora_base_model", "lora_checkpoint", "network"])
def test_any_lora_option_alone_means_a_lora(name: str):
    values: dict[str, Any] = {"lora_rank": None, name: {"lora_rank": 4, "network": "lokr"}.get(name, "dit")}
    assert build(**values).adapter.wants_lora
    assert not build(lora_rank=None, trainable_models="dit").adapter.wants_lora


@pytest.mark.parametrize("prefix", ["pipe.", "pipe.dit.", "pipe.text_encoder."])
def test_a_prefix_of_what_is_trained_is_accepted(prefix: str):
    options = build(remove_prefix_in_ckpt=prefix, trainable_models="text_encoder")
    assert options.output.remove_prefix_in_ckpt == prefix


def test_paths_and_ids_of_weights_can_be_mixed():
    assert build(model=None, model_paths='["a"]', model_id_with_origin_paths="a/b:c").weights.model is None
