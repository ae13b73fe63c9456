"""Families and presets by name, and the family of a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families import families, find_preset, identify_folder, load_family, pipeline_class


def test_a_family_is_found_by_its_name() -> None:
    family = load_family("qwen-image")
    assert families()["qwen-image"] is family
    assert pipeline_class(family).family is family


def test_a_preset_is_found_with_its_family() -> None:
    family, preset = find_preset("tiny")
    assert (family.name, preset.name) == ("qwen-image", "tiny")
    folder = preset.local_path()
    assert folder is not None
    assert identify_folder(folder) is family


def test_an_unknown_name_names_the_near_miss() -> None:
    with pytest.raises(UsageError, match="unknown family 'qwen-imgae'") as caught:
        load_family("qwen-imgae")
    assert caught.value.hint == "did you mean 'qwen-image'?"
    with pytest.raises(UsageError, match="unknown model 'qwen-image-2521'") as caught:
        find_preset("qwen-image-2521")
    assert caught.value.hint == "did you mean 'qwen-image-2512'?"


def test_a_name_like_no_other_lists_what_there_is() -> None:
    with pytest.raises(UsageError) as caught:
        find_preset("xyzzy")
    assert "tiny" in str(caught.value.hint)
    assert "folder" in str(caught.value.hint)


def test_the_components_of_a_family_are_found_by_name() -> None:
    assert load_family("qwen-image").component("dit").folder == "transformer"
    with pytest.raises(UsageError, match="unknown component of qwen-image 'ditt'"):
        load_family("qwen-image").component("ditt")


def test_a_folder_that_is_no_model_says_why(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    cases = {
        tmp_path / "absent": "does not exist",
        file: "is not a folder",
        tmp_path: "has no model_index.json",
    }
    for path, problem in cases.items():
        with pytest.raises(DsctlError, match=problem) as caught:
            identify_folder(path)
        assert caught.value.hint


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is not valid JSON"),
        ("[]", "should hold a JSON object, and holds a list"),
        ("{}", "it lacks the field _class_name"),
        (json.dumps({"_class_name": "StableDiffusionPipeline"}), "is a StableDiffusionPipeline"),
    ],
)
def test_a_model_index_of_something_else_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(DsctlError, match=problem):
        identify_folder(tmp_path)
