"""A preset is downloaded as a model folder, by a command that never imports torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsctl_core.families import families, find_preset
from dsctl_core.families.resolve import resolve_model
from tests.dsctl_core.hub.conftest import REPO
from tests.hub_server import LocalHub

ON_HUBS = [preset.name for family in families().values() for preset in family.presets if preset.model_id is not None]


def put(hub: LocalHub, name: str) -> dict[str, set[str]]:
    """Put the files of a preset on the hub, with some that nobody asked for; return those asked for, by repository."""
    family, preset = find_preset(name)
    assert preset.model_id is not None
    wanted: dict[str, set[str]] = {preset.model_id: {"model_index.json", "scheduler/scheduler_config.json"}}
    readers = {reader: f"{folder}vocab.json" for reader, folder in family.reader_files(preset).items()}
    for part, pattern in {**family.component_files(preset), **readers}.items():
        files = {pattern.replace("*", "-00001-of-00001"), f"{pattern.rpartition('/')[0]}/config.json"}
        wanted.setdefault(preset.repository(part), set()).update(files)
    for repository, files in wanted.items():
        extra = {"README.md", "onnx/model.onnx", "model_index.json", "other/diffusion_pytorch_model.safetensors"}
        hub.add(repository, dict.fromkeys(files | extra, b"{}"))
    return wanted


@pytest.mark.parametrize("name", ON_HUBS)
@pytest.mark.parametrize("source", ["modelscope", "huggingface"])
def test_a_preset_brings_what_a_model_folder_has_and_nothing_else(hub, dsctl, name, source):
    wanted = put(hub, name)
    run = dsctl("download", name, "--source", source, "--json")
    assert run.code == 0, run.err
    assert Path(run.json["folder"]) == Path("models", str(find_preset(name)[1].model_id))
    assert [Path(each["folder"]) for each in run.json["things"]] == [Path("models", name) for name in wanted]
    for repository, files in wanted.items():
        folder = Path("models", repository)
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert {path for path in found if not path.startswith(".")} == files


def test_a_preset_of_several_repositories_has_no_one_folder_and_no_one_revision(hub, dsctl):
    several = next(name for name in ON_HUBS if find_preset(name)[1].from_repositories)
    for flag in ("--local-dir", "--revision"):
        error, hint = dsctl("download", several, flag, "x").fault(2)
        assert "in several repositories" in error
        assert flag in hint


@pytest.mark.parametrize("name", ON_HUBS)
def test_what_was_downloaded_is_what_the_preset_resolves_to(hub, dsctl, name, monkeypatch):
    wanted = put(hub, name)
    assert dsctl("download", name).code == 0
    monkeypatch.setenv("DSCTL_SKIP_DOWNLOAD", "1")
    resolved = resolve_model(name)
    found = {path.as_posix() for config in resolved.model_configs for path in config.resolve()}
    weights = {f"models/{repository}/{file}" for repository, files in wanted.items() for file in files}
    assert found == {path for path in weights if path.endswith(".safetensors")}
    assert resolved.reader_configs["tokenizer"].resolve()[0].is_dir()


def test_the_embedded_preset_is_there_already(hub, dsctl):
    run = dsctl("download", "tiny", "--json")
    assert Path(run.json["folder"], "model_index.json").is_file()
    assert hub.requests == []


def test_several_things_at_once_and_an_unknown_name(hub, dsctl):
    run = dsctl("download", "tiny", REPO, "--json")
    assert [each["what"] for each in run.json["things"]] == ["tiny", REPO]
    error, hint = dsctl("download", "qwen-imge").fault(2)
    assert "qwen-imge" in error and "qwen-image" in hint
    error, _ = dsctl("download", "tiny", REPO, "--local-dir", "x").fault(2)
    assert "several things" in error
    assert "is missing" in dsctl("download").fault(2)[0]


@pytest.mark.parametrize("source", ["modelscope", "huggingface"])
def test_downloading_never_imports_torch(hub, tmp_path, source):
    code = (
        "import sys; from dsctl.app import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'diffusers', 'transformers', 'pandas'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else code)"
    )
    words = ("download", REPO, "--source", source, "--local-dir", str(tmp_path / "x"))
    repository = str(Path(__file__).parents[3])
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "PYTHONPATH": repository}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x" / "README.md").is_file()
