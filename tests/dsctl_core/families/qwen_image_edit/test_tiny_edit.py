"""The embedded model for editing: it edits as it is asked to, and works with the parts that it shares with `tiny`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dsctl_core.assets import assets_path
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.dataset import validate
from dsctl_core.commands.infer import infer
from dsctl_core.commands.merge_lora import merge
from dsctl_core.commands.train import train
from dsctl_core.families.qwen_image_edit.units import PREFIX, SYSTEM
from dsctl_core.families.resolve import resolve_model
from dsctl_core.options import CacheOptions, DatasetValidateOptions, InferOptions, TrainOptions
from dsctl_core.options.lora_tools import MergeLoraOptions

PICTURES = assets_path("datasets/robot")
PINK, TEAL = (252, 160, 190), (64, 190, 184)  # as the model's training data has them


@pytest.fixture(scope="module")
def pipe() -> Any:
    return resolve_model("tiny-edit").load_pipeline(torch_dtype=torch.float32, device="cpu")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32)


def opened(name: str) -> Image.Image:
    with Image.open(PICTURES / name) as image:
        return image.convert("RGB")


def test_the_dropped_prefix_is_the_whole_system_prompt(pipe: Any) -> None:
    assert len(pipe.reader("tokenizer")(SYSTEM).input_ids) == PREFIX == 64


def test_it_changes_what_it_is_asked_to_and_leaves_the_rest(pipe: Any) -> None:
    fox, dog = opened("fox_blue.png"), opened("dog_teal.png")
    recoloured, combined = (
        pipe(prompt, edit_image=pictures, seed=0)
        for prompt, pictures in (
            ("put it on a pink background", [fox]),
            ("use the background of picture 2", [fox, dog]),
        )
    )
    before = pixels(fox)
    background = np.abs(before - before[0, 0]).max(axis=2) == 0
    for image, colour in ((recoloured, PINK), (combined, TEAL)):
        assert image.size == (96, 96)
        after = pixels(image)
        assert np.abs(after[background].mean(axis=0) - colour).max() < 20
        kept, gone = (np.square(each - before)[~background].mean() for each in (after, np.full_like(before, colour)))
        assert kept < gone / 3


def test_the_parts_that_both_embedded_models_have_are_there_once() -> None:
    own = {path.name for path in assets_path("tiny-edit").iterdir() if path.is_dir()}
    assert own == {"processor", "scheduler", "text_encoder", "transformer"}
    size = sum(path.stat().st_size for path in assets_path("tiny-edit").rglob("*") if path.is_file())
    assert size < 12e6


def test_it_is_trained_and_merged_to_a_whole_model(tmp_path: Path) -> None:
    pairs = assets_path("datasets/frame_edit")
    data = {"dataset_base_path": pairs, "data_file_keys": ("image", "edit_image"), "extra_inputs": ("edit_image",)}
    options = TrainOptions(
        model="tiny-edit", lora_rank=2, max_steps=2, batch_size=2, device="cpu", output_path=tmp_path / "run", **data
    )
    lora = train(options).checkpoint
    assert any(bool(each.any()) for name, each in load_file(lora).items() if "lora_B" in name)
    merge(MergeLoraOptions(model="tiny-edit", lora=(str(lora),), output=tmp_path / "merged"))
    asked = {"prompt": "put it into a golden frame", "edit_image": (PICTURES / "fox_blue.png",), "device": "cpu"}
    made = []
    for name, model, loras in (("a", "tiny-edit", (str(lora),)), ("b", str(tmp_path / "merged"), ())):
        output = tmp_path / f"{name}.png"
        infer(InferOptions(model=model, lora=loras, output=output, num_inference_steps=2, **asked))
        with Image.open(output) as image:
            made.append(pixels(image))
    assert made[0].shape == (96, 96, 3)
    assert np.abs(made[0] - made[1]).mean() < 2  # the merged weights are rounded to bfloat16


def test_validate_estimates_the_cache_of_a_model_by_its_own_sizes_of_references(tmp_path: Path) -> None:
    data = assets_path("datasets/frame_edit")
    rows = (data / "metadata.csv").read_text().splitlines()[:4]
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    columns = {"data_file_keys": ("image", "edit_image")}
    options = DatasetValidateOptions(path=data, metadata=tmp_path / "rows.csv", model="tiny-edit", **columns)
    estimated = validate(options).summary["cache_bytes"]
    settings = {"model": "tiny-edit", "dataset_base_path": data, "dataset_metadata_path": tmp_path / "rows.csv"}
    settings |= {"extra_inputs": ("edit_image",), "mixed_precision": "bf16", "device": "cpu", **columns}
    made = make_cache(CacheOptions(**settings, output_path=tmp_path / "cache"))
    assert estimated == pytest.approx(made.manifest.bytes["tensors"], rel=0.1)
    large: Any = resolve_model("qwen-image-edit-2511").family
    dit = {"out_channels": 16, "joint_attention_dim": 3584}
    assert large.reference_bytes(large.parts(), dit, 1024, 1024) == 2 * (16 * 128 * 128 + (14 * 14 + 8) * 3584)
