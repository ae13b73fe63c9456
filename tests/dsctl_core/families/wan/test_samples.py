"""Samples during training of models that are given frames: what infer makes of the same frames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.infer import infer
from dsctl_core.commands.train import train
from dsctl_core.data import LoadVideo
from dsctl_core.errors import DsctlError
from dsctl_core.options import CacheOptions, InferOptions, TrainOptions
from tests.dsctl_core.families.wan.conftest import Pairs
from tests.dsctl_core.families.wan.test_training import write_clips

DRAWN = {"sample_every": 9, "sample_steps": 1, "sample_height": 32, "sample_width": 64, "sample_cfg_scale": 1.0}
COMMON = {"lora_rank": 2, "max_steps": 1, "mixed_precision": "no", "device": "cpu", **DRAWN}


def frames_of(path: Path) -> Any:
    return np.stack([np.asarray(frame) for frame in LoadVideo(None, 1, 0)(path)])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips, with a table, and their first and last frames beside them."""
    folder = write_clips(tmp_path_factory.mktemp("given") / "data")
    (folder / "metadata.csv").write_text("video,prompt\n0.mp4,a red fox\n1.mp4,two blue birds\n")
    for number in range(2):
        clip = LoadVideo(5)(folder / f"{number}.mp4")
        clip[0].save(folder / f"first-{number}.png")
        clip[-1].save(folder / f"last-{number}.png")
    return folder


@pytest.mark.parametrize(("kind", "names"), [("flf2v", ("input_image", "end_image")), ("ti2v", ("input_image",))])
def test_samples_show_the_clips_that_infer_makes_of_the_frames_of_their_rows(
    pairs: Pairs, data: Path, tmp_path: Path, kind: str, names: tuple[str, ...]
) -> None:
    model = str(pairs[kind].folder)
    source = {"model": model, "dataset_base_path": data, "data_file_keys": ("video",), "num_frames": 5}
    source |= {"extra_inputs": names} if kind == "ti2v" else {}
    train(TrainOptions(**source, **COMMON, cache=False, output_path=tmp_path / "rows"))
    make_cache(CacheOptions(**source, mixed_precision="no", device="cpu", output_path=tmp_path / "cache"))
    given = [{"input_image": f"first-{number}.png", "end_image": f"last-{number}.png"} for number in range(2)]
    lines = [
        {"prompt": prompt, **{name: frames[name] for name in names}}
        for prompt, frames in zip(("a red fox", "two blue birds"), given, strict=True)
    ]
    prompts = data / f"{kind}.jsonl"  # files are relative to its folder
    prompts.write_text("\n".join(map(json.dumps, lines)))
    again = {"from_cache": tmp_path / "cache", "sample_prompts_file": prompts, "output_path": tmp_path / "file"}
    train(TrainOptions(**again, **COMMON))
    for number, line in enumerate(lines):
        made = infer(
            InferOptions(
                model=model,
                prompt=line["prompt"],
                **{name: data / line[name] for name in names},
                seed=number,
                height=32,
                width=64,
                num_frames=5,
                num_inference_steps=1,
                cfg_scale=1.0,
                solver=None,
                output=tmp_path / f"{number}.mp4",
                device="cpu",
            )
        )
        expected = frames_of(made.files[0])
        for run in ("rows", "file"):
            shown = frames_of(tmp_path / run / "samples" / f"step-0-{number + 1}.mp4")
            assert np.array_equal(shown, expected), (run, number)
    if kind == "ti2v":
        return
    for line, said in (
        ({"prompt": "a"}, "the sample 'a' has no input_image, which .* makes clips from"),
        ({"prompt": "a", "input_image": "nowhere.png"}, r"jsonl line 1, input_image: .*nowhere.png"),
        ({"prompt": "a", "input_image": 3}, "jsonl line 1: input_image is 3"),
    ):
        prompts.write_text(json.dumps(line))
        with pytest.raises(DsctlError, match=said):
            train(TrainOptions(**{**again, "output_path": tmp_path / "bad"}, **COMMON))
    with pytest.raises(DsctlError, match="the sample 'x' has no input_image") as caught:
        words = {"sample_prompt": ["x"], "output_path": tmp_path / "bad", "from_cache": tmp_path / "cache"}
        train(TrainOptions(**words, **COMMON))
    assert '"input_image": "cat.png"' in str(caught.value.hint)
