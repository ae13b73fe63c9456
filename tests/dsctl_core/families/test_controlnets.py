"""Control networks by name, file and folder: which are found, and what is refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import Tensor

from dsctl_core.control import ControlUse
from dsctl_core.control.source import ControlNetSource, new_network
from dsctl_core.errors import DsctlError
from dsctl_core.families import families, load_family
from dsctl_core.families.controlnets import open_controlnet, with_controlnets
from dsctl_core.families.resolve import resolve_model
from dsctl_core.options.control import ControlNetFile

QWEN = load_family("qwen-image")
KIND = QWEN.controlnets[0]
DENOISER = {"num_layers": 2, "in_channels": 64, "num_attention_heads": 2, "attention_head_dim": 16}


def opened(text: str, seed: int | None = None) -> ControlNetSource:
    return open_controlnet(ControlNetFile.parse(text), 1, QWEN, DENOISER, seed)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "edges.safetensors"
    save_file(state(), path)
    return path


def state(**sizes: int) -> dict[str, Tensor]:
    config = {**KIND.new_config(DENOISER), **sizes}
    return dict(new_network(KIND, config, 0).state_dict())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("canny", ControlNetFile("canny")),
        ("canny:0.5", ControlNetFile("canny", 0.5)),
        ("a/b.safetensors:-1@1-0.25", ControlNetFile("a/b.safetensors", -1.0, 1.0, 0.25)),
        ("canny@0.9-0.1", ControlNetFile("canny", 1.0, 0.9, 0.1)),
        ("C:/edges", ControlNetFile("C:/edges")),
    ],
)
def test_scale_and_range_stand_behind_the_name(text: str, expected: ControlNetFile) -> None:
    assert ControlNetFile.parse(text) == expected
    assert ControlNetFile.parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (" ", "names no control network"),
        (":0.5", "names no control network"),
        ("canny:much", "'much' is not a number"),
        ("canny:11", "not between -10 and 10"),
        ("canny@0.2-0.8", "the range 0.2-0.8 does not go down"),
        ("canny@1.5-0", "the range 1.5-0 does not go down"),
    ],
)
def test_what_is_no_scale_and_no_range_is_said(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ControlNetFile.parse(text)


def test_a_path_that_exists_is_taken_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a:2@1-0").mkdir()
    assert ControlNetFile.parse("a:2@1-0") == ControlNetFile("a:2@1-0")


def test_a_file_and_its_folder_are_the_same_network(file: Path) -> None:
    one, other = opened(f"{file}:0.5@0.8-0.2"), opened(str(file.parent))
    assert one.kind is other.kind is KIND
    assert one.config == other.config == KIND.new_config(DENOISER)
    assert one.identity == other.identity
    assert one.use == ControlUse(0.5, 0.8, 0.2)
    assert one.columns == ("control_image",)
    assert replace(one, name="controlnet_2").columns == ("control_image_2",)


def test_a_new_network_is_for_training_alone() -> None:
    new = opened("blockwise-inpaint", seed=1)
    assert new.weights is None
    assert new.columns == ("control_image", "control_mask")
    assert new.identity != opened("blockwise-inpaint", seed=2).identity
    with pytest.raises(DsctlError, match="names a new control network, which changes nothing"):
        opened("blockwise")


def test_what_does_not_fit_is_refused(file: Path, tmp_path: Path) -> None:
    cut, wide, other = (tmp_path / f"{name}.safetensors" for name in ("cut", "wide", "other"))
    save_file({name: tensor for name, tensor in state().items() if "y_rms" not in name}, cut)
    save_file(state(dim=48), wide)
    save_file({"some.weight": state()["img_in.bias"]}, other)
    for text, problem in {
        "cany": "unknown control network 'cany'",
        "nowhere/edges": "nowhere/edges does not exist",
        "nowhere.safetensors": "nowhere.safetensors does not exist",
        str(wide): "has dim 48, but for this Qwen-Image it is 32",
        str(other): "is no control network of Qwen-Image, by the names of its tensors",
        "qwen-image-blockwise-canny": "has num_layers 60, but for this Qwen-Image it is 2",
    }.items():
        with pytest.raises(DsctlError, match=problem):
            opened(text)
    model = resolve_model("tiny")
    without = next(family for family in families().values() if not family.controlnets)
    with pytest.raises(DsctlError, match="has no control networks"):
        with_controlnets(replace(model, family=without), [ControlNetFile("blockwise")], seed=0)


def test_a_network_that_lacks_a_weight_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    from dsctl_core.control.source import ControlWeights, load_network

    path = tmp_path / "cut.safetensors"
    save_file({name: tensor for name, tensor in state().items() if "y_rms" not in name}, path)
    with pytest.raises(DsctlError, match=r"lacks controlnet_blocks\.0\.y_rms\.weight"):
        load_network(KIND, ControlWeights.at([path]), str(path))
    with init_empty_weights():
        assert new_network(KIND, KIND.new_config(DENOISER), 0) is not None
