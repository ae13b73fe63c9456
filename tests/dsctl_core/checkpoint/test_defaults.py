"""A model folder carries its own size, steps and guidance: read by every way of loading it, and checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dsctl_core.checkpoint.defaults import DEFAULTS_FILE, folder_defaults, write_defaults
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.errors import DsctlError
from dsctl_core.families import families, find_preset, load_family, pipeline_class
from dsctl_core.families.resolve import resolve_model
from tests.contract.media import shown
from tests.tiny_models import BUILDERS, write_tiny_model, write_tiny_wan

OWN = {"height": 48, "width": 64, "num_inference_steps": 2, "cfg_scale": 1.0}


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_every_way_of_loading_a_folder_takes_its_defaults(tmp_path: Path, name: str) -> None:
    folder, family = write_tiny_model(name, tmp_path / "model"), load_family(name)
    assert folder_defaults(family, folder) == resolve_model(str(folder)).defaults
    own = OWN if family.time_division is None else {**OWN, "num_frames": 5, "fps": 12}
    write_defaults(folder, own)
    expected = {**family.defaults, **own}
    assert resolve_model(str(folder)).defaults == expected
    assert resolve_model(model_paths=json.dumps([str(folder)])).defaults == expected
    pipes = [
        resolve_model(str(folder)).load_pipeline(torch_dtype=torch.float32, device="cpu"),
        pipeline_class(family).from_pretrained(
            torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(path=folder)]
        ),
    ]
    steps: list[int] = []
    for pipe in pipes:
        assert pipe.defaults == expected
        picture: Any = pipe(
            prompt="a fox",
            seed=0,
            progress_bar_cmd=lambda each: [steps.append(0) or step for step in each],
            **shown(family, 64, 48),
        )
        if family.edited_size is not None:  # its size is that of the edited picture
            continue
        if family.time_division is not None:
            assert (len(picture.frames), picture.fps) == (5, 12)
            picture = picture.frames[0]
        assert picture.size == (64, 48)
        if family.time_division is None:
            assert pipe(prompt="a fox", seed=0, width=32, num_inference_steps=1).size == (32, 48)
    assert len(steps) == 2 * len(pipes)


@pytest.mark.parametrize(("kind", "scales"), [("t2v-a14b", (4.0, 3.0)), ("i2v-a14b", (3.5, 3.5)), ("t2v", 5.0)])
def test_a_folder_keeps_one_guidance_scale_or_one_for_each_denoiser(tmp_path: Path, kind: str, scales: Any) -> None:
    folder = write_tiny_wan(tmp_path / "model", kind=kind)
    assert resolve_model(str(folder)).defaults["cfg_scale"] == scales
    for given in (scales, (6.0, 2.0), 1.5):
        write_defaults(folder, {"cfg_scale": given})
        resolved = resolve_model(str(folder))
        pipe = resolved.load_pipeline(torch_dtype=torch.float32, device="cpu", only=["dit"])
        assert resolved.defaults["cfg_scale"] == pipe.default("cfg_scale", None) == given
    for wrong in ([4.0], [4.0, 3.0, 2.0], [4.0, "3"], [4.0, -1.0]):
        write_defaults(folder, {"cfg_scale": wrong})
        with pytest.raises(DsctlError, match="as cfg_scale"):
            resolve_model(str(folder))


def test_the_embedded_preset_and_its_folder_have_the_same_defaults() -> None:
    embedded = [(f, preset) for f in families().values() for preset in f.presets if preset.folder is not None]
    assert embedded
    for family, preset in embedded:
        path = preset.local_path()
        assert path is not None
        assert (
            folder_defaults(family, path)
            == resolve_model(preset.name).defaults
            == {**family.defaults, **preset.defaults}
        )


def test_a_picture_of_the_embedded_preset_has_its_size_in_python() -> None:
    pipe = resolve_model("tiny").load_pipeline(torch_dtype=torch.float32, device="cpu")
    assert {name: pipe.default(name, None) for name in OWN} == {n: find_preset("tiny")[1].defaults[n] for n in OWN}
    assert pipe("a red fox", seed=1, num_inference_steps=1, cfg_scale=1).size == (96, 96)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not valid JSON"),
        ("[]", "should hold a JSON object"),
        ("{}", 'has no object "defaults"'),
        ('{"defaults": [1]}', 'has no object "defaults"'),
        ('{"defaults": {"hight": 64}}', "has the default 'hight', which Qwen-Image does not know"),
        *(
            (json.dumps({"defaults": {name: value}}), f"has {value!r} as {name}")
            for name, values in {
                "height": ("64", 64.0, -16, True, None, [64]),
                "cfg_scale": ("4", -1, False, None, {}),
            }.items()
            for value in values
        ),
        ('{"defaults": {"cfg_scale": NaN}}', "cfg_scale is nan, not a finite number"),
        ('{"defaults": {"cfg_scale": 1e999}}', "cfg_scale is inf, not a finite number"),
    ],
)
def test_what_is_no_default_is_named_with_the_file(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "QwenImagePipeline"}')
    (tmp_path / DEFAULTS_FILE).write_text(content)
    with pytest.raises(DsctlError) as caught:
        resolve_model(str(tmp_path))
    assert said in caught.value.problem
    assert str(tmp_path / DEFAULTS_FILE) in caught.value.problem
