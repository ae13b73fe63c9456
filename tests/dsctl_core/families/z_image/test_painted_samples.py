"""Samples during training of a control network that paints on a picture: what infer makes of the same pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsctl_core.commands.infer import infer
from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError
from dsctl_core.families.z_image.controlnets import new_config_2
from dsctl_core.options import InferOptions, TrainOptions
from tests.dsctl_core.families.z_image.conftest import Pair
from tests.dsctl_core.families.z_image.test_control import left_half, network, noise

DRAWN = {"sample_every": 9, "sample_steps": 1, "sample_height": 48, "sample_width": 80, "sample_cfg_scale": 1.0}


def test_samples_are_what_infer_paints_on_the_picture_of_a_row_or_of_a_line(
    pairs: dict[str, Pair], tmp_path: Path
) -> None:
    data = tmp_path / "data"  # not where the command runs: files of a line are beside the prompts file
    data.mkdir()
    for name in ("a.png", "b.png"):
        noise(ord(name[0])).save(data / name)
    left_half().save(data / "c.png")
    Image.new("L", (8, 8)).save(data / "small.png")
    (data / "metadata.csv").write_text("image,control_image,control_mask,prompt\na.png,b.png,c.png,a red fox\n")
    network(tmp_path / "net", new_config_2)
    named, model = f"{tmp_path / 'net'}#inpaint", str(pairs["base"].folder)
    options = {"model": model, "dataset_base_path": data, "device": "cpu", "mixed_precision": "no", **DRAWN}
    options |= {"controlnet": (named,), "lora_rank": 2, "max_steps": 1}
    lines = data / "lines.jsonl"
    line = {"prompt": "a red fox", "control_image": "b.png", "control_mask": "c.png", "input_image": "a.png"}
    lines.write_text("\n".join(map(json.dumps, (line, {"prompt": "a blue bird"}))))
    train(TrainOptions(**options, output_path=tmp_path / "rows"))
    train(TrainOptions(**options, sample_prompts_file=lines, output_path=tmp_path / "file"))
    size = {"height": 48, "width": 80, "num_inference_steps": 1, "cfg_scale": 1.0, "device": "cpu"}
    steered = {"control_image": (data / "b.png",), "control_mask": (data / "c.png",)}
    given = ({"controlnet": (named,), **steered, "input_image": data / "a.png"}, {})
    for number, (prompt, more) in enumerate(zip(("a red fox", "a blue bird"), given, strict=True)):
        made = infer(
            InferOptions(model=model, prompt=prompt, seed=number, **size, **more, output=tmp_path / f"{number}x.png")
        )
        for run in ("rows", "file")[number:]:  # the second prompt, without control, is in the file alone
            with Image.open(tmp_path / run / "samples" / f"step-0-{number + 1}.png") as shown:
                assert np.array_equal(shown, Image.open(made.files[0])), (run, number)
    for wrong, said in (
        ({"input_image": None}, "'a red fox' has control_image, but no input_image"),
        ({"control_mask": None}, "'a red fox' has control_image, but no control_mask"),
        ({"control_mask": "small.png"}, "has a control_mask of 8x8, but its input_image is 80x48"),
    ):
        lines.write_text(json.dumps({name: value for name, value in {**line, **wrong}.items() if value is not None}))
        with pytest.raises(DsctlError, match=said):
            train(TrainOptions(**options, sample_prompts_file=lines, output_path=tmp_path / "bad"))
    steered["control_mask"] = (data / "small.png",)
    with pytest.raises(DsctlError, match="--control-mask is 8x8, but --input-image is 80x48"):
        infer(InferOptions(model=model, prompt="a", **{**given[0], **steered}, **size, output=tmp_path / "bad.png"))
