"""What an Apple GPU does not do is refused in one line that names the option, before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from dsctl_core.errors import UsageError
from dsctl_core.options import CacheOptions, InferOptions, TrainOptions
from dsctl_core.options.dataset import DatasetCaptionOptions

TRAIN = {"model": "tiny", "dataset_base_path": ".", "output_path": "out", "device": "mps"}
INFER = {"model": "tiny", "prompt": "a", "device": "mps"}
REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (TrainOptions, {**TRAIN, "mixed_precision": "bf16"}, "--mixed-precision bf16"),
    (TrainOptions, {**TRAIN, "fp8_models": "text_encoder"}, "--fp8-models"),
    (TrainOptions, {**TRAIN, "quantize": "text_encoder=int8"}, "--quantize"),
    (TrainOptions, {**TRAIN, "compile": True}, "--compile"),
    (TrainOptions, {**TRAIN, "offload_blocks": 2}, "--offload-blocks"),
    (TrainOptions, {**TRAIN, "num_processes": 2}, "--num-processes"),
    (TrainOptions, {**TRAIN, "accelerate_config": "fsdp2.yaml"}, "--accelerate-config"),
    (TrainOptions, {**TRAIN, "fit": "auto"}, "--fit"),
    (TrainOptions, {**TRAIN, "dry_run": True}, "--dry-run"),
    (CacheOptions, {**TRAIN, "mixed_precision": "fp16"}, "--mixed-precision fp16"),
    (CacheOptions, {**TRAIN, "quantize": "text_encoder=int8"}, "--quantize"),
    (CacheOptions, {**TRAIN, "num_processes": 2}, "--num-processes"),
    (InferOptions, {**INFER, "dtype": "bfloat16"}, "--dtype bfloat16"),
    (InferOptions, {**INFER, "quantize": "dit=int8"}, "--quantize"),
    (InferOptions, {**INFER, "offload": "blocks"}, "--offload"),
    (DatasetCaptionOptions, {"path": ".", "model": "tiny", "device": "mps", "dtype": "float16"}, "--dtype float16"),
]


@pytest.mark.parametrize(("kind", "given", "flag"), REFUSED, ids=[f"{k.__name__} {flag}" for k, _, flag in REFUSED])
def test_what_an_apple_gpu_does_not_do_is_refused_by_its_name(kind, given, flag):
    with pytest.raises(UsageError, match=f"{flag} is given") as caught:
        kind.model_validate(given)
    assert "--device mps" in caught.value.problem and "\n" not in caught.value.problem
    assert caught.value.hint == f"leave {flag.split()[0]} out"
    kind.model_validate({**given, "device": "cuda"})


def test_float32_in_one_process_is_taken():
    TrainOptions.model_validate({**TRAIN, "mixed_precision": "no", "num_processes": 1})
    InferOptions.model_validate({**INFER, "dtype": "float32", "offload": "none"})
