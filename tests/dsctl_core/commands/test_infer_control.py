"""`infer` with a control network that takes a mask: the mask lies on the picture, or is refused before loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file

from dsctl_core.commands.infer import infer
from dsctl_core.control.source import new_network
from dsctl_core.errors import DsctlError
from dsctl_core.families import load_family
from dsctl_core.options import InferOptions


@pytest.fixture
def build(tiny_folder: Path, tmp_path: Path) -> Any:
    """Return a function that makes the options of a run with a mask of a size."""
    family = load_family("qwen-image")
    kind = next(each for each in family.controlnets if len(each.columns) == 2)
    network = new_network(kind, kind.new_config(family.tiny["dit"]), 0)
    save_file(dict(network.state_dict()), tmp_path / "repair.safetensors")
    Image.new("RGB", (48, 32), "red").save(tmp_path / "picture.png")

    def make(size: tuple[int, int], **more: Any) -> InferOptions:
        Image.new("L", size, "white").save(tmp_path / "mask.png")
        small = {"height": 32, "width": 48, "num_inference_steps": 1, "device": "cpu", "prompt": "a cat"}
        control = {"controlnet": [str(tmp_path / "repair.safetensors")], "control_image": [tmp_path / "picture.png"]}
        control["control_mask"] = [tmp_path / "mask.png"]
        return InferOptions(**{"model": str(tiny_folder), **small, **control, "output": "a.png", **more})

    return make


def test_a_mask_of_the_size_of_its_picture_is_taken(build: Any) -> None:
    assert infer(build((48, 32))).files == [Path("a.png")]


@pytest.mark.parametrize("size", [(24, 16), (32, 48), (48, 33)], ids=str)
def test_a_mask_of_another_size_is_refused_before_anything_is_loaded(
    build: Any, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    monkeypatch.setattr("dsctl_core.commands.infer.load", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(DsctlError) as caught:
        infer(build(size))
    assert caught.value.problem == f"--control-mask is {size[0]}x{size[1]}, but --control-image is 48x32"
    assert caught.value.hint == "give a mask as large as the picture"
    assert not Path("a.png").exists()
