"""An imported config of several datasets is accepted by the dry run, for each tool, and trains.

That of DiffSynth-Studio, which has one, is in test_first_steps.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsctl_core.options.config_file import load_toml
from tests.dsctl.running import Dsctl
from tests.dsctl_core.imports.several import SEVERAL, write_several

TRAINED = ("ai-toolkit", "musubi-tuner with clips")  # which have masks, regularization, samples, and clips


@pytest.mark.parametrize("tool", SEVERAL)
def test_an_imported_config_trains_on_all_of_its_datasets(tool: str, dsctl: Dsctl, repository: Path):
    files, model, tables, lost = SEVERAL[tool]
    run = dsctl("import", *write_several(files, repository / "dsctl_core/assets" / model), "--json")
    assert run.code == 0, run.err
    assert {each["key"]: each["value"] for each in run.json["without_counterpart"]} == lost
    assert run.json["missing"] == {}
    written = load_toml(Path("run.toml"), "FILE").get("dataset", [])
    assert [{key: _texts(value) for key, value in table.items()} for table in written] == tables
    planned = dsctl("train", "--config", "run.toml", "--dry-run", "--device", "cpu", "--json")
    assert planned.code == 0, planned.err
    if tool not in TRAINED:
        return
    trained = dsctl("train", "--config", "run.toml", "--device", "cpu", "--max-steps", "2", "--json")
    assert (trained.code, trained.json.get("steps")) == (0, 2), trained.err
    about = json.loads(Path(next(Path().glob("out/**/run.json"))).read_text(encoding="utf-8"))
    assert len(about["options"]["dataset"]) == len(tables)


def _texts(value: object) -> object:
    return [str(each) for each in value] if isinstance(value, list) else value
