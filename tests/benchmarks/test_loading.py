"""The benchmark of loading runs to its end and writes what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from diffusers import QwenImageTransformer2DModel

from benchmarks import loading
from dsctl_core.families import load_family


def test_it_measures_loading_with_and_without_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write_tiny(folder: Path, layers: int) -> int:
        QwenImageTransformer2DModel(**{**load_family("qwen-image").tiny["dit"], "num_layers": layers}).save_pretrained(
            folder
        )
        return 1

    monkeypatch.setattr(loading, "write_transformer", write_tiny)
    output = tmp_path / "new" / "loading.json"
    loading.main(["--layers", "1", "--rounds", "1", "--output", str(output)])
    measured = json.loads(output.read_text())
    assert measured["plain"] > 0
    for name in ("first", "again"):
        assert measured[f"added_{name}"] == pytest.approx(measured[name] / measured["plain"] - 1)
