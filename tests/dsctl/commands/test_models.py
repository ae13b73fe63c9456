"""`dsctl models`: what can be named with --model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsctl_core.families import families
from tests.dsctl.running import Dsctl

PRESETS = [(family, preset) for family in families().values() for preset in family.presets]


@pytest.mark.parametrize("words", [("models",), ("models", "list")])
def test_the_list_names_every_preset(dsctl: Dsctl, words: tuple[str, ...]):
    run = dsctl(*words)
    assert run.code == 0
    assert len(PRESETS) >= 3
    for family, preset in PRESETS:
        assert any(line.split()[:2] == [preset.name, family.name] for line in run.out.splitlines())
        assert preset.summary in run.out


@pytest.mark.parametrize("words", [("models",), ("models", "list")])
def test_the_list_as_json_has_families_and_presets(dsctl: Dsctl, words: tuple[str, ...]):
    listed = dsctl(*words, "--json").json
    assert [family["name"] for family in listed["families"]] == list(families())
    assert [(preset["family"], preset["name"]) for preset in listed["presets"]] == [
        (f.name, p.name) for f, p in PRESETS
    ]
    assert all((preset["path"] is None) != (preset["model_id"] is None) for preset in listed["presets"])


@pytest.mark.parametrize(("family", "preset"), PRESETS, ids=[preset.name for _, preset in PRESETS])
def test_a_preset_is_shown_with_its_family_path_and_components(dsctl: Dsctl, family, preset):
    shown = dsctl("models", "show", preset.name, "--json").json
    assert (shown["name"], shown["family"], shown["model_id"]) == (preset.name, family.name, preset.model_id)
    always = {component.name for component in family.components if not component.optional}
    assert always <= {part["name"] for part in shown["components"]}
    if preset.folder is None:
        assert shown["path"] is None
        assert {part["name"]: part["files"] for part in shown["components"]} == family.component_files(preset)
    else:
        assert (Path(shown["path"]) / "model_index.json").is_file()
        assert all((Path(part["path"]) / "config.json").is_file() for part in shown["components"])
    assert shown["defaults"]["height"] == {**family.defaults, **preset.defaults}["height"]


def test_a_preset_is_shown_as_text(dsctl: Dsctl):
    run = dsctl("models", "show", "tiny")
    assert run.code == 0
    for part in ("tiny", "qwen-image", "text_encoder", "height 96", "to_q,to_k"):
        assert part in run.out
    assert "None" not in run.out


def test_a_model_folder_is_shown(dsctl: Dsctl, tmp_path: Path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "QwenImagePipeline"}), encoding="utf-8")
    shown = dsctl("models", "show", tmp_path, "--json").json
    assert (shown["name"], shown["path"], shown["family"]) == (str(tmp_path), str(tmp_path), "qwen-image")


@pytest.mark.parametrize(
    ("words", "code", "problem", "hint"),
    [
        (["qwen-imag"], 2, "unknown model 'qwen-imag'", "did you mean 'qwen-image'?"),
        (["zzz"], 2, "unknown model 'zzz'", ", tiny, qwen-image"),
        (["./nowhere"], 1, "nowhere does not exist", "model_index.json"),
        ([], 2, "NAME is missing", "NAME takes text"),
        (["a", "b"], 2, "unexpected argument 'b'", "dsctl models show --help"),
    ],
)
def test_a_name_that_is_no_model_is_refused(dsctl: Dsctl, words: list[str], code: int, problem: str, hint: str):
    found = dsctl("models", "show", *words).fault(code)
    assert problem in found[0]
    assert hint in found[1]


def test_the_graph_says_what_runs_once_and_what_at_every_step(dsctl: Dsctl):
    shown = dsctl("models", "show", "qwen-image", "--graph", "--json").json
    once, every_step = ([unit["unit"] for unit in shown[stage]] for stage in ("once", "every_step"))
    assert {"InputImageEmbedder", "PromptEmbedder"} <= set(once)
    assert every_step == ["NoiseInitializer", "LatentsInitializer"]
    assert shown["kept"] == ["height", "input_latents", "prompt_embeds", "prompt_embeds_mask", "width"]
    assert (shown["first_components"], shown["second_components"]) == (["vae", "text_encoder"], ["dit"])
    assert shown["model_fn"] == {
        "components": ["dit"],
        "reads": ["input_latents", "noise", "prompt_embeds", "prompt_embeds_mask"],
    }


def test_the_graph_of_other_trained_components_is_another(dsctl: Dsctl):
    run = dsctl("models", "show", "tiny", "--graph", "--trainable-models", "text_encoder")
    before, _, after = run.out.partition("at every step\n")
    assert "InputImageEmbedder" in before
    assert "PromptEmbedder" in after
    assert "the second stage loads: dit, text_encoder" in after
    assert dsctl("models", "show", "tiny", "--graph", "--trainable-models", "dti").code == 2


def test_the_drawing_in_the_docs_is_what_the_command_prints(dsctl: Dsctl, repository: Path):
    page = (repository / "docs" / "concepts" / "units.md").read_text(encoding="utf-8")
    drawing = page.partition("<!-- printed by: dsctl models show qwen-image --graph -->\n```\n")[2].partition("```")[0]
    assert drawing == dsctl("models", "show", "qwen-image", "--graph").out
