"""Omni's reference images: clean latents, features of SigLIP and pieces of text, as diffusers' pipeline has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.infer import infer
from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError
from dsctl_core.families.z_image.units import scaled
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.media.references import center_cropped
from dsctl_core.options import CacheOptions, InferOptions, TrainOptions
from tests.dsctl_core.families.z_image.conftest import PROMPTS, Pair, close, noisy, write_rows

SIZES = [(64, 80), (100, 77), (96, 64)]  # width and height of references


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let diffusers' pipeline, which rounds references to bfloat16, keep them as they are."""
    monkeypatch.setattr(Tensor, "bfloat16", lambda tensor: tensor)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "batch"])
def test_whole_images_with_references(omni: Pair, in_float32: None, prompts: list[str], count: int) -> None:
    pictures = [noisy(size, seed) for seed, size in enumerate(SIZES[:count])]
    actual = omni.our_images(prompts, 2, 5.0, height=48, width=80, edit_image=pictures)
    close(actual, omni.official_images(prompts, 2, 5.0, height=48, width=80, image=pictures))
    plain = omni.our_images(prompts, 2, 5.0, height=48, width=80)
    assert (actual - plain).abs().max() > 1e-3, "the references count"


def test_pieces_of_text_are_those_of_diffusers(omni: Pair) -> None:
    unit = omni.ours.units[-1]
    for count in (1, 2, 3):
        with torch.no_grad():
            found = unit.process(omni.ours, PROMPTS[0], [noisy(SIZES[0])] * count)
            expected = omni.official.encode_prompt(
                PROMPTS[0], do_classifier_free_guidance=False, num_condition_images=count
            )[0][0]
        assert found["prompt_pieces"] == tuple(len(each) for each in (*expected[:-2], expected[-1]))
        close(found["prompt_embeds"][0], torch.cat([*expected[:-2], expected[-1], expected[-2]]))


@pytest.mark.parametrize("size", [(640, 384), (100, 77), (1300, 1100), (2000, 700)])
def test_reference_pictures_are_fitted_as_in_diffusers(omni: Pair, size: tuple[int, int]) -> None:
    picture, area = noisy(size), 512 * 768
    processor = omni.official.image_processor
    resized = picture if size[0] * size[1] <= 1024 * 1024 else processor._resize_to_target_area(picture, area)
    ours = scaled(picture, area)
    assert np.array_equal(np.array(ours), np.array(resized))
    sides = {"width": resized.width // 16 * 16, "height": resized.height // 16 * 16}
    close(
        omni.ours.preprocess_image(center_cropped(ours, 16)), processor.preprocess(resized, resize_mode="crop", **sides)
    )


@pytest.mark.parametrize("size", [(63, 100), (64, 600)])
def test_a_reference_that_diffusers_refuses_is_refused_by_its_size(omni: Pair, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="too"):
        omni.official.image_processor.check_image_input(noisy(size))
    with pytest.raises(DsctlError, match=f"a reference picture is {size[0]}x{size[1]}"):
        omni.our_images(PROMPTS[:1], 1, 1.0, height=32, width=32, edit_image=noisy(size))


def test_weights_that_take_no_references_say_so(base: Pair, tmp_path: Path) -> None:
    noisy((64, 64)).save(tmp_path / "a.png")
    settings = {"model": str(base.folder), "prompt": "a", "device": "cpu", "num_inference_steps": 1}
    with pytest.raises(DsctlError, match="these weights take no reference pictures"):
        infer(InferOptions(**settings, edit_image=(tmp_path / "a.png",), output=tmp_path / "b.png"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rows, two with one reference and two with two."""
    folder = tmp_path_factory.mktemp("edits")
    rows = []
    for number in range(4):
        names = [f"edit{number}{place}.png" for place in range(1 + number // 2)]
        for place, name in enumerate(names):
            noisy([(64, 64), (80, 64)][place], 10 * number + place).save(folder / name)
        noisy((48, 32), 100 + number).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "prompt": f"make it {number}", "edit_image": names})
    return write_rows(folder, *rows)


def settings(pair: Pair, data: Path, out: Path, **values: Any) -> dict[str, Any]:
    return {
        "model": str(pair.folder),
        "dataset_base_path": data,
        "data_file_keys": "image,edit_image",
        "extra_inputs": "edit_image",
        "output_path": out,
        "device": "cpu",
        "mixed_precision": "no",
        **values,
    }


@pytest.mark.parametrize("batch_size", [1, 2])
def test_training_on_references_from_a_cache_equals_training_without(
    omni: Pair, data: Path, tmp_path: Path, batch_size: int
) -> None:
    common = {"lora_rank": 2, "max_steps": 4, "batch_size": batch_size, "dataset_repeat": 3, "seed": 1}
    plain = train(TrainOptions(**settings(omni, data, tmp_path / "plain", cache=False, **common)))
    make_cache(CacheOptions(**settings(omni, data, tmp_path / "cache")))
    again = {"from_cache": tmp_path / "cache", "output_path": tmp_path / "again", "device": "cpu"}
    cached = train(TrainOptions(**again, mixed_precision="no", **common))
    assert plain.final_loss == cached.final_loss
    one, other = (read_safetensors(each.checkpoint)[0] for each in (plain, cached))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    # Seven layers of each of two blocks and three refiners, one of which reads SigLIP's features.
    assert len(one) == 2 * 7 * (2 + 3)
    assert any(name.startswith("diffusion_model.siglip_refiner.0") for name in one)


def test_a_row_without_its_reference_is_named(omni: Pair, data: Path, tmp_path: Path) -> None:
    options = {**settings(omni, data, tmp_path / "out", lora_rank=2), "data_file_keys": "image"}
    (tmp_path / "metadata.jsonl").write_text('{"image": "0.png", "prompt": "a"}\n')
    with pytest.raises(DsctlError, match="no 'edit_image'"):
        train(TrainOptions(**{**options, "dataset_metadata_path": tmp_path / "metadata.jsonl"}))


def test_infer_edits_pictures_at_the_size_of_the_first(omni: Pair, tmp_path: Path) -> None:
    noisy((100, 70)).save(tmp_path / "0.png")
    common = {"model": str(omni.folder), "prompt": "a", "num_inference_steps": 1, "device": "cpu"}
    made = infer(InferOptions(**common, edit_image=(tmp_path / "0.png",), output=tmp_path / "a.png"))
    with Image.open(made.files[0]) as picture:
        assert picture.size == (96, 64)
