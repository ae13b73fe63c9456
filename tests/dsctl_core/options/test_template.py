"""Template options: folders, hubs and trained files, JSON for each, and no option without effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsctl_core.errors import UsageError
from dsctl_core.options import CacheOptions, InferOptions, TrainOptions
from dsctl_core.options.template import TemplateInputs, TemplateSource

INFER: dict[str, Any] = {"model": "tiny", "prompt": "a"}
TRAIN: dict[str, Any] = {"model": "tiny", "dataset_base_path": "data", "output_path": "out"}


@pytest.mark.parametrize(
    ("text", "source", "checkpoint"),
    [
        ("dir", "dir", None),
        ("some/dir", "some/dir", None),
        ("dir:out/step-3.safetensors", "dir", "out/step-3.safetensors"),
        ("C:\\dir:C:\\out\\a.safetensors", "C:\\dir:C", "\\out\\a.safetensors"),
        ("owner/name:", "owner/name:", None),
        ("owner/name@v1", "owner/name@v1", None),
        ("owner/name@v1:", "owner/name@v1:", None),
        ("owner/name:a.safetensors", "owner/name:", "a.safetensors"),
        ("owner/name@v1:a.safetensors", "owner/name@v1", "a.safetensors"),
        ("odd:dir", "odd:dir", None),
        ("odd:dir:a.safetensors", "odd:dir", "a.safetensors"),
    ],
)
def test_a_template_is_a_folder_or_a_repository_with_or_without_a_file(
    text: str, source: str, checkpoint: str | None
) -> None:
    Path("dir").mkdir()
    Path("odd:dir").mkdir()
    found = TemplateSource.parse(text)
    wanted = None if checkpoint is None else Path(checkpoint)
    if "\\" in text:  # a drive's colon: at least no part of the file
        assert found.checkpoint is not None
        return
    assert (found.source, found.checkpoint) == (source, wanted)
    assert TemplateSource.parse(str(found)) == found


@pytest.mark.parametrize("text", ["", "  ", "a.safetensors", "dir:.safetensors"])
def test_what_names_no_template_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--template is"):
        TrainOptions(**TRAIN, trainable_models="template_model", template=text)


def test_inputs_are_a_json_object_each() -> None:
    options = InferOptions(
        **INFER, template=["a", "b:"], template_inputs=['{"scale": 0.8}', "{}"], negative_template_inputs=["{}", "{}"]
    )
    assert [each.values for each in options.templates.template_inputs] == [{"scale": 0.8}, {}]
    for text, said in (("{scale}", "not JSON"), ("[1]", "no JSON object"), ("3", "no JSON object")):
        with pytest.raises(UsageError, match=f"--template-inputs.*{said}"):
            InferOptions(**INFER, template=["a"], template_inputs=[text])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"template": ["a", "b"], "template_inputs": ["{}"]}, "--template-inputs is given 1 time for 2 templates"),
        ({"template": ["a"], "negative_template_inputs": ["{}"] * 2}, "--negative-template-inputs is given 2 times"),
        ({"template_inputs": ["{}"]}, "--template-inputs has no effect without --template"),
        ({"trust_template": True}, "--trust-template has no effect without --template"),
    ],
)
def test_inputs_without_a_template_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        InferOptions(**INFER, **given)


def test_what_is_trained_is_the_template_where_a_cache_is_for_one() -> None:
    assert CacheOptions(**TRAIN).trained_names == ("dit",)
    assert CacheOptions(**TRAIN, template="a").trained_names == ("template_model",)
    assert CacheOptions(**TRAIN, template="a", trainable_models="dit").trained_names == ("dit",)
    first = TrainOptions(**TRAIN, task="sft:data_process", template="a")
    assert first.trained_components == ("template_model",)
    part = TrainOptions(**TRAIN, trainable_models="template_model.a,template_model.b", template="a")
    assert part.trained_names == ("template_model.a", "template_model.b")
    assert part.trained_components == ("template_model",)


def test_trust_may_be_given_for_the_template_of_a_cache() -> None:
    with pytest.raises(UsageError, match="--trust-template has no effect"):
        TrainOptions(**TRAIN, lora_rank=2, trust_template=True)
    assert TrainOptions(from_cache="c", output_path="o", lora_rank=2, trust_template=True).templates.trust_template


def test_values_that_are_parsed_already_stay() -> None:
    source, inputs = TemplateSource("a"), TemplateInputs({"x": 1})
    options = InferOptions(**INFER, template=(source,), template_inputs=(inputs,))
    assert options.templates.template == (source,)
    assert options.templates.template_inputs == (inputs,)
