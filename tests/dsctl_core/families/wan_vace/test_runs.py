"""Whole runs of Wan VACE on a dataset: validated, encoded once, trained, resumed, reckoned; and faulty columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.checkpoint.trained_part import TrainedPart
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.dataset import validate
from dsctl_core.commands.merge_lora import merge
from dsctl_core.commands.train import dry_run, train
from dsctl_core.data import LoadVideo
from dsctl_core.errors import DsctlError
from dsctl_core.families.resolve import resolve_model
from dsctl_core.files.safetensors import read_safetensors, safetensors_header
from dsctl_core.media.made_file import about_made
from dsctl_core.options import CacheOptions, TrainOptions
from dsctl_core.options.dataset import DatasetValidateOptions
from dsctl_core.options.lora_tools import MergeLoraOptions
from tests.dsctl_core.families.wan.conftest import SMALL, Pair, clip, load, write_clips, write_video
from tests.dsctl_core.families.wan_vace.conftest import REFERENCES, mask, masks

COLUMNS = ("vace_video", "vace_video_mask", "vace_reference_image")
PART = ["dit.vace_blocks", "dit.vace_patch_embedding"]


def rows_of(folder: Path, rows: list[dict[str, Any]], name: str = "metadata.json") -> None:
    (folder / name).write_text(json.dumps(rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips: one that follows a video, its mask and two pictures; one a video and a still mask; one nothing."""
    folder = write_clips(tmp_path_factory.mktemp("vace") / "data")
    for number in range(2):
        write_video(folder / f"edges{number}.mp4", clip(20 + number, 9, **SMALL))
    write_video(folder / "mask.mp4", masks(3, 9, **SMALL))
    mask(5, **SMALL).save(folder / "still.png")
    for number, picture in enumerate(REFERENCES):
        picture.save(folder / f"r{number}.png")
    first = {"vace_video": "edges0.mp4", "vace_video_mask": "mask.mp4", "vace_reference_image": ["r2.png", "r0.png"]}
    second = {"vace_video": "edges1.mp4", "vace_video_mask": "still.png", "vace_reference_image": None}
    rows = [
        {"video": "0.mp4", "prompt": "a red fox", **first},
        {"video": "1.mp4", "prompt": "two blue birds in a tree", **second},
        {"video": "2.gif", "prompt": "a gif", "vace_video": "", "vace_video_mask": "", "vace_reference_image": []},
    ]
    rows_of(folder, rows)
    return folder


def settings_of(pair: Pair, data: Path, **more: Any) -> dict[str, Any]:
    keys = {"data_file_keys": ("video", *COLUMNS), "extra_inputs": COLUMNS, "num_frames": 5}
    settings = {"model": str(pair.folder), "dataset_base_path": data, "device": "cpu", "mixed_precision": "no"}
    return {**settings, **keys, **more}


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_dataset_is_validated_and_its_cache_reckoned(pair: Pair, data: Path) -> None:
    keys = {"data_file_keys": ("video", *COLUMNS), "num_frames": 5}
    found = validate(DatasetValidateOptions(path=data, model=str(pair.folder), **keys))
    assert found.clean, found.lines()
    assert found.summary["warnings"] == 0, "a small reference image is not enlarged"
    clips = 3 * (2 * (16 + 32) + 64) * 2 * 4 * 8  # three rows; channels in two bytes and in one; latents
    assert clips < found.summary["cache_bytes"] < clips + 3 * 2 * 16 * 10, "and prompts of at most ten tokens"


def test_by_default_the_part_alone_is_trained_and_saved_as_a_dry_run_reckons(
    pair: Pair, data: Path, tmp_path: Path
) -> None:
    options = TrainOptions(**settings_of(pair, data), max_steps=4, seed=3, output_path=tmp_path / "out")
    reckoned = dry_run(options)
    result = train(options)
    tensors = read_safetensors(result.checkpoint)[0]
    before = pair.official.transformer.state_dict()
    own = {name for name in before if name.startswith(("vace_blocks.", "vace_patch_embedding."))}
    assert set(tensors) == own
    assert sum(not torch.equal(tensors[name], before[name]) for name in own) >= len(own) - 2
    assert reckoned.parameters["trained"] == sum(tensor.numel() for tensor in tensors.values())
    assert reckoned.sample["shapes"]["shared.vace_latents"] == [1, 32, 4, 4, 8], "of the row with references"
    made = sum(file.stat().st_size for file in (tmp_path / "out" / "cache").rglob("*.safetensors"))
    assert 0.5 * made < reckoned.disk["cache"] < 1.5 * made
    assert abs(result.checkpoint.stat().st_size - reckoned.disk["checkpoints"]) < 20_000
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["options"]["trainable_models"] == PART
    assert run["options"]["learning_rate"] == 5e-5
    about = safetensors_header(result.checkpoint)[0]["__metadata__"]
    assert about["trained_parts"] == "vace_blocks,vace_patch_embedding"
    # The file goes back into the model: by inference, and into a whole model folder.
    part = TrainedPart.at(result.checkpoint, pair.ours.family, pair.ours.components)
    network = load(pair.folder, only=["dit"]).dit
    part.put_into(network)
    expected = {**before, **tensors}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
    merge(MergeLoraOptions(model=str(pair.folder), trained_part=[result.checkpoint], output=tmp_path / "merged"))
    merged = load(tmp_path / "merged", only=["dit"]).dit.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in merged.items())
    named = {"trainable_models": PART, "learning_rate": 5e-5, "output_path": tmp_path / "named"}
    train(TrainOptions(**settings_of(pair, data), max_steps=4, seed=3, **named))
    assert losses(tmp_path / "out") == losses(tmp_path / "named")


@pytest.mark.parametrize("trained", [{}, {"lora_rank": 2}], ids=["the part", "a LoRA"])
def test_training_from_a_cache_is_training_without_one(
    pair: Pair, data: Path, tmp_path: Path, trained: dict[str, Any]
) -> None:
    settings, more = settings_of(pair, data), {"max_steps": 4, "seed": 3, **trained}
    make_cache(CacheOptions(**settings, output_path=tmp_path / "cache"))
    whole = train(TrainOptions(**settings, **more, cache=False, output_path=tmp_path / "whole"))
    second = {"device": "cpu", "mixed_precision": "no", "from_cache": tmp_path / "cache", "extra_inputs": COLUMNS}
    from_cache = train(TrainOptions(**second, **more, output_path=tmp_path / "second"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "second")
    one, other = (read_safetensors(each.checkpoint)[0] for each in (whole, from_cache))
    assert all(torch.equal(one[name], other[name]) for name in one)
    dataset = CachedDataset(tmp_path / "cache")
    samples = [dataset.sample(entry) for entry in dataset.entries]
    assert [sample["shared.reference_frames"] for sample in samples] == [2, 0, 0]
    assert samples[0]["shared.vace_latents"].shape == (1, 32, 4, 4, 8)
    assert samples[0]["shared.vace_mask"].dtype == torch.uint8
    assert samples[0]["shared.input_latents"].shape == (1, 16, 4, 4, 8)
    assert not {name for name in samples[0] if name.partition(".")[2] in COLUMNS}


def test_a_batch_has_rows_with_the_same_number_of_references(pair: Pair, data: Path, tmp_path: Path) -> None:
    rows = json.loads((data / "metadata.json").read_text())
    rows_of(data, [{**rows[0]}, {**rows[0], "vace_reference_image": ["r1.png", "r2.png"]}, rows[1]], "batches.json")
    more = {"dataset_metadata_path": data / "batches.json", "batch_size": 2, "seed": 3}
    train(TrainOptions(**settings_of(pair, data), **more, output_path=tmp_path / "out"))
    assert len(losses(tmp_path / "out")) == 2, "one batch of two rows and one of one"


def test_a_resumed_run_is_the_run_to_the_bit(pair: Pair, data: Path, tmp_path: Path) -> None:
    settings = settings_of(pair, data, seed=3, optimizer="adamw", save_steps=2)
    whole = train(TrainOptions(**settings, max_steps=4, output_path=tmp_path / "whole"))
    train(TrainOptions(**settings, max_steps=2, output_path=tmp_path / "part"))
    more = {"allow_changed": ("max_steps",), "resume": "latest"}
    resumed = train(TrainOptions(**settings, max_steps=4, output_path=tmp_path / "part", **more))
    one, other = (read_safetensors(each.checkpoint)[0] for each in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert losses(tmp_path / "whole") == losses(tmp_path / "part")


def test_both_denoisers_of_fun_are_trained_each_at_its_own_levels(two: Pair, data: Path, tmp_path: Path) -> None:
    both = [f"{name}.{part}" for name in ("dit", "dit_2") for part in ("vace_blocks", "vace_patch_embedding")]
    settings = settings_of(two, data, learning_rate=0.01, seed=5)
    result = train(TrainOptions(**settings, trainable_models=both, max_steps=8, output_path=tmp_path / "both"))
    assert [file.name for file in result.checkpoints] == ["step-8.dit.safetensors", "step-8.dit_2.safetensors"]
    alone = train(TrainOptions(**settings, max_steps=2, output_path=tmp_path / "one"))
    assert safetensors_header(alone.checkpoint)[0]["__metadata__"]["component"] == "dit"


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "a mask of nothing": ({"vace_video_mask": "still.png"}, "vace_video_mask is given without vace_video"),
    "a mask of another shape": (
        {"vace_video": "edges0.mp4", "vace_video_mask": "square.png"},
        "48x48 pixels, ",
    ),
    "a mask of other frames": (
        {"vace_video": "edges0.mp4", "vace_video_mask": "short.mp4"},
        "the clip has 3 frames, but 5 are needed",
    ),
    "a still as video": ({"vace_video": "still.png"}, "the vace_video has 1 frame, and what it belongs to 5"),
    "two videos": ({"vace_video": ["edges0.mp4", "edges1.mp4"]}, "a row has one vace_video"),
    "a video as reference": ({"vace_reference_image": ["edges0.mp4"]}, "edges0.mp4 is a"),
    "a missing reference": ({"vace_reference_image": ["r0.png", "r9.png"]}, "r9.png does not exist"),
    "a number as reference": ({"vace_reference_image": 3}, "the value is the number 3, not a file name"),
}


@pytest.mark.parametrize(("cells", "said"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_row_is_named_in_one_line_by_training_and_by_validation(
    pair: Pair, data: Path, tmp_path: Path, cells: dict[str, Any], said: str
) -> None:
    mask(6, width=48, height=48).save(data / "square.png")
    write_video(data / "short.mp4", masks(4, 3, **SMALL))
    row = {"video": "0.mp4", "prompt": "a red fox", **dict.fromkeys(COLUMNS), **cells}
    rows_of(data, [row, {**row, **dict.fromkeys(COLUMNS)}], "faulty.json")
    settings = settings_of(pair, data, dataset_metadata_path=data / "faulty.json")
    with pytest.raises(DsctlError) as caught:
        train(TrainOptions(**settings, max_steps=2, output_path=tmp_path / "out"))
    assert said in caught.value.problem
    assert "row 1" in caught.value.problem
    assert "\n" not in caught.value.problem
    assert not (tmp_path / "out" / "metrics.jsonl").exists()
    keys = {"data_file_keys": ("video", *COLUMNS), "num_frames": 5}
    found = validate(DatasetValidateOptions(path=data, metadata=data / "faulty.json", model=str(pair.folder), **keys))
    problems = [each for each in found.found.problems if each.level == "error"]
    assert {each.row for each in problems} == {1}
    assert any(said in each.message for each in problems)


def test_columns_of_vace_are_refused_for_a_family_without_it(data: Path, tmp_path: Path) -> None:
    assert "vace_video" not in resolve_model("tiny-video").family.extra_inputs
    settings = {"model": "tiny-video", "dataset_base_path": data, "device": "cpu", "lora_rank": 2, "max_steps": 1}
    with pytest.raises(DsctlError, match="unknown extra input 'vace_video'"):
        train(TrainOptions(**settings, extra_inputs=COLUMNS, output_path=tmp_path / "out"))


def test_samples_follow_the_rows_of_the_dataset_or_the_lines_of_a_file(pair: Pair, data: Path, tmp_path: Path) -> None:
    settings = settings_of(pair, data, max_steps=1, sample_every=5, sample_steps=1, sample_cfg_scale=1)
    sizes = {"height": 32, "width": 64}
    train(TrainOptions(**settings, **sizes, output_path=tmp_path / "rows"))
    drawn = {about["prompt"]: about for about in map(about_made, sorted((tmp_path / "rows/samples").glob("step-0-*")))}
    assert drawn["a red fox"]["vace_reference_image"] == [str(data / "r2.png"), str(data / "r0.png")]
    assert drawn["a red fox"]["vace_video"] == [str(data / "edges0.mp4")]
    assert not [name for name in drawn["a gif"] if name.startswith("vace_")]
    line = {"prompt": "a red fox", "seed": 0, "vace_video": "edges0.mp4", "vace_video_mask": "mask.mp4"}
    lines = [line, {**line, "vace_reference_image": ["r2.png", "r0.png"]}]
    (data / "samples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    more = {"sample_prompts_file": data / "samples.jsonl", "output_path": tmp_path / "lines"}
    train(TrainOptions(**settings, **sizes, **more))
    # The second line is the first row, with its seed and before any step; the first is another.
    first, second, row = (
        np.stack(LoadVideo(None)(file))
        for file in (*sorted((tmp_path / "lines/samples").glob("step-0-*")), tmp_path / "rows/samples/step-0-1.mp4")
    )
    assert np.array_equal(second, row)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"vace_video": 3}, "vace_video is 3"),
        ({"vace_video": ["edges0.mp4", "edges1.mp4"]}, "vace_video of the sample 'a' is 2 files"),
        ({"vace_video": "nowhere.mp4"}, "nowhere.mp4 does not exist"),
        ({"vace_reference_image": ["edges0.mp4"]}, "edges0.mp4 is a"),
        ({"vace_vidoe": "edges0.mp4"}, "unknown key in .* 'vace_vidoe'"),
    ],
)
def test_a_faulty_line_of_samples_is_refused(
    pair: Pair, data: Path, tmp_path: Path, line: dict[str, Any], said: str
) -> None:
    (tmp_path / "samples.jsonl").write_text(json.dumps({"prompt": "a", **line}))
    for name in ("edges0.mp4", "edges1.mp4"):
        (tmp_path / name).symlink_to(data / name)
    more = {"sample_every": 5, "sample_prompts_file": tmp_path / "samples.jsonl", "output_path": tmp_path / "out"}
    with pytest.raises(DsctlError, match=said):
        train(TrainOptions(**settings_of(pair, data, max_steps=1), **more))
