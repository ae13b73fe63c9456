"""A preset is downloaded as a model folder, by a command that never imports torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsctl_core.families import families, find_preset
from tests.dsctl_core.hub.conftest import REPO
from tests.hub_server import LocalHub

ON_HUBS = [preset.name for family in families().values() for preset in family.presets if preset.model_id is not None]


def put(hub: LocalHub, name: str) -> set[str]:
    """Put the files of a preset on the hub, with some that nobody asked for."""
    family, preset = find_preset(name)
    files = {pattern.replace("*", "-00001-of-00001"): b"weights" for pattern in preset.files.values()}
    files |= {f"{pattern.rpartition('/')[0]}/config.json": b"{}" for pattern in preset.files.values()}
    files |= {f"{family.tokenizer_files}vocab.json": b"{}", "scheduler/scheduler_config.json": b"{}"}
    files |= {"model_index.json": b"{}"}
    assert preset.model_id is not None
    hub.add(preset.model_id, {**files, "README.md": b"", "onnx/model.onnx": b"large"})
    return set(files)


@pytest.mark.parametrize("name", ON_HUBS)
@pytest.mark.parametrize("source", ["modelscope", "huggingface"])
def test_a_preset_brings_what_a_model_folder_has_and_nothing_else(hub, dsctl, name, source):
    files = put(hub, name)
    run = dsctl("download", name, "--source", source, "--json")
    assert run.code == 0, run.err
    folder = Path(run.json["folder"])
    assert folder == Path("models", str(find_preset(name)[1].model_id))
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {path for path in found if not path.startswith(".")} == files


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
