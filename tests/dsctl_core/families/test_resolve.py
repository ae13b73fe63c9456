"""From what a user names to a family and its components."""

import json

import pytest

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families import find_preset
from dsctl_core.families.resolve import resolve_model


def test_the_embedded_preset_is_a_folder_with_its_own_defaults():
    resolved = resolve_model("tiny")
    assert resolved.family.name == "qwen-image"
    assert resolved.model_configs[0].resolve() == [find_preset("tiny")[1].local_path()]
    assert resolved.defaults["height"] == 96


def test_a_published_preset_names_every_component_and_the_tokenizer():
    resolved = resolve_model("qwen-image")
    patterns = {config.origin_file_pattern for config in resolved.model_configs}
    assert {config.model_id for config in resolved.model_configs} == {"Qwen/Qwen-Image"}
    assert len(patterns) == len(resolved.family.components)
    assert resolved.reader_configs["tokenizer"].origin_file_pattern == "tokenizer/"


def test_a_folder_files_and_a_mixture_are_recognised(tmp_path, monkeypatch):
    folder = find_preset("tiny")[1].local_path()
    assert resolve_model(str(folder)).family.name == "qwen-image"
    files = json.dumps([str(folder / "vae/diffusion_pytorch_model.safetensors")])
    resolved = resolve_model(model_paths=files)
    assert resolved.reader_configs["tokenizer"].path == folder / "tokenizer"
    (tmp_path / "O").mkdir()
    (tmp_path / "O" / "M").symlink_to(folder)
    monkeypatch.setenv("DSCTL_MODEL_BASE_PATH", str(tmp_path))
    mixed = resolve_model(model_paths=files, model_id_with_origin_paths="O/M:transformer/*.safetensors")
    assert [config.path is None for config in mixed.model_configs] == [False, True]


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({}, UsageError, "is needed"),
        ({"model": "tiny", "model_paths": "[]"}, UsageError, "is needed"),
        ({"model": "qwen-imgae"}, UsageError, "unknown model 'qwen-imgae'"),
        ({"model": "./nowhere"}, DsctlError, "nowhere does not exist"),
        ({"model_paths": "{"}, UsageError, "this is not JSON"),
        ({"model_paths": "[]"}, UsageError, "is not a JSON list of paths"),
        ({"model_paths": "[1]"}, UsageError, "1 is neither a path"),
        ({"model_paths": '["missing.safetensors"]'}, DsctlError, "missing.safetensors does not exist"),
        ({"model_id_with_origin_paths": "just-a-name"}, UsageError, "neither a path that exists nor ID:PATTERN"),
        ({"model_id_with_origin_paths": " , "}, UsageError, "names no model files"),
        ({"model": "tiny", "tokenizer_path": "nowhere"}, UsageError, "nowhere"),
    ],
)
def test_what_cannot_be_resolved_says_why(given, kind, message):
    with pytest.raises(kind, match=message) as caught:
        resolve_model(**given)
    assert caught.value.hint


def test_a_component_that_no_family_has_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    (tmp_path / "w.safetensors").write_text("")
    with pytest.raises(DsctlError, match="UNet2DConditionModel, which no family has"):
        resolve_model(model_paths=json.dumps([str(tmp_path / "w.safetensors")]))
