"""Components come and go: whatever runs has been asked for, so that it is on the device, and the rest can be away."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.families import families, load_family, pipeline_class
from dsctl_core.placement import Placement
from tests.contract.media import filled, shown, small
from tests.tiny_models import write_tiny_model

ENTRIES = ("forward", "encode", "decode", "generate", "get_image_features")  # by which components are run


class Watched(Placement):
    """Knows which components would be on the device, and notes those that run without being there."""

    def __init__(self) -> None:
        super().__init__(apart=True)
        self.there: set[str] = set()
        self.ran: set[str] = set()
        self.absent: set[str] = set()
        self.most = 0

    def make_room(self, pipe: Any, names: Collection[str]) -> None:
        """Note what is there from now on."""
        self.there = set(names)
        self.most = max(self.most, len(self.there))

    def watch(self, name: str, model: Any) -> None:
        """Note each run of `model`."""

        def noting(entry: Any) -> Any:
            def run(*args: Any, **kwargs: Any) -> Any:
                self.ran.add(name)
                if name not in self.there:
                    self.absent.add(name)
                return entry(*args, **kwargs)

            return run

        for entry in ENTRIES:
            if hasattr(model, entry):
                setattr(model, entry, noting(getattr(model, entry)))


@pytest.mark.parametrize("name", sorted(families()))
def test_each_component_is_asked_onto_the_device_before_it_runs(name: str, tmp_path: Path) -> None:
    family = load_family(name)
    pipe: Any = pipeline_class(family).from_pretrained(
        torch_dtype=torch.float32,
        device="cpu",
        model_configs=[ModelConfig(path=write_tiny_model(name, tmp_path / "tiny"))],
    )
    watched = pipe.placement = Watched()
    for component, model in pipe.components.items():
        watched.watch(component, model)
    settings = small(family)
    picture = shown(family, settings["width"], settings["height"]).get("edit_image", [None])[0]
    if picture is None:
        from PIL import Image

        picture = Image.new("RGB", (settings["width"], settings["height"]), "red")
        settings |= {**filled(family, picture), "denoising_strength": 0.9}
    pipe("a fox", seed=1, **settings)
    assert watched.absent == set()
    assert {*watched.ran} >= {"dit", "vae"}
    assert watched.most < len(pipe.components)
