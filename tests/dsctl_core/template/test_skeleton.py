"""The skeletons run as they are written, on the model that they are written for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.errors import DsctlError
from dsctl_core.families import families
from dsctl_core.template.check import describe
from dsctl_core.template.model import load_template
from dsctl_core.template.skeleton import blocks_of_model, write_skeleton
from dsctl_core.template.trust import Trust


@pytest.mark.parametrize("kind", ["value", "image"])
def test_a_skeleton_runs_and_all_of_it_is_trained(kind: str, pipe: Any, model_folder: Path, tmp_path: Path) -> None:
    assert write_skeleton(tmp_path / "s", kind, str(model_folder)).files == ["model.py"]
    template = load_template(ModelConfig(path=tmp_path / "s"), Trust(granted=True))
    Image.new("RGB", (20, 30), "gray").save(tmp_path / "p.png")
    row = {"image": str(tmp_path / "p.png")}
    facts = describe(template, pipe, template.annotate(row))
    assert len(facts["forward"]) == 2 * len(blocks_of_model(str(model_folder)))
    assert facts["no_gradient"] == []
    assert facts["changes_the_picture"] is True


def test_the_brightness_of_a_picture_is_measured(model_folder: Path, tmp_path: Path) -> None:
    write_skeleton(tmp_path / "s", "value", str(model_folder))
    template = load_template(ModelConfig(path=tmp_path / "s"), Trust(granted=True))
    Image.new("RGB", (8, 8), (51, 51, 51)).save(tmp_path / "p.png")
    assert template.annotate({"image": str(tmp_path / "p.png")})["scale"] == pytest.approx(0.2, abs=1e-6)


def test_the_blocks_of_every_published_model_are_known_without_its_weights() -> None:
    presets = [
        preset.name
        for family in families().values()
        if family.attention_blocks
        for preset in family.presets
        if preset.model_id
    ]
    assert presets
    for name in presets:
        blocks = blocks_of_model(name)
        assert any(block.endswith("_0") for block in blocks)
        assert len(set(blocks.values())) == 1


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    with pytest.raises(DsctlError, match="already exists"):
        write_skeleton(tmp_path, "value", "tiny")
    assert list(tmp_path.iterdir()) == []
