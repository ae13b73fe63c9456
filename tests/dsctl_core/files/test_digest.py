"""The identity of weights: the same for the same bytes, another when a layer is trained, also of large files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dsctl_core.checkpoint.identify import identify_weights
from dsctl_core.files import digest as identity
from dsctl_core.files.digest import weights_identity


def write(path: Path, changed: int | None = None, layers: int = 8) -> Path:
    """Write a file of `layers` layers of 8 kB, one of them changed by training."""
    tensors = {f"{n}.weight": torch.full((2048,), float(n)) for n in range(layers)}
    if changed is not None:
        tensors[f"{changed}.weight"] += 1e-3
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


@pytest.fixture(params=["whole", "in blocks"])
def _reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in blocks":
        for name, value in (("WHOLE", 1000), ("BLOCK", 64), ("BLOCKS", 32)):
            monkeypatch.setattr(identity, name, value)


@pytest.mark.usefixtures("_reading")
def test_places_names_and_order_of_the_files_do_not_matter(tmp_path: Path):
    a, b = write(tmp_path / "a.safetensors"), write(tmp_path / "b.safetensors", layers=3)
    moved = write(tmp_path / "elsewhere" / "c.safetensors")
    assert weights_identity([a, b]) == weights_identity([b, moved])
    assert weights_identity([a, b]) != weights_identity([a])


@pytest.mark.usefixtures("_reading")
@pytest.mark.parametrize("layer", range(8))
def test_training_any_layer_gives_another(tmp_path: Path, layer: int):
    same, changed = write(tmp_path / "a.safetensors"), write(tmp_path / "b.safetensors", changed=layer)
    assert weights_identity([same]) != weights_identity([changed])


def test_a_component_that_is_a_single_file_has_an_identity_without_a_config(tmp_path: Path):
    file = write(tmp_path / "vae.safetensors")
    assert identify_weights(file) == identify_weights(file)
    assert identify_weights(file) != identify_weights(file, notes=["fp8"])
    assert identify_weights(file) != identify_weights(write(tmp_path / "other.safetensors", changed=1))
