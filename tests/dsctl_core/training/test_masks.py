"""Masks: what they leave out has no part in a run, what they leave in counts as without them, in batches as alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError
from dsctl_core.losses.sft import mean_by_sample
from dsctl_core.media.latent_space import LatentSpace
from dsctl_core.media.masks import LossMask
from dsctl_core.media.units import mask_of_latents
from dsctl_core.options import TrainOptions

SIZE = (48, 32)


def drawn(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 2**31), batch=st.integers(1, 4), clip=st.booleans())
def test_the_mean_is_over_what_counts_and_a_full_mask_is_no_mask_to_the_bit(seed: int, batch: int, clip: bool):
    shape = (batch, 3, *((2,) if clip else ()), 4, 5)
    errors = drawn(shape, seed).requires_grad_()
    mask = (drawn((batch, 1, *shape[2:]), seed + 1) > 0.4).float() * drawn((batch, 1, *shape[2:]), seed + 2)
    mask[:, :, ..., 0, 0] = 1
    mask[0] = 1
    found = mean_by_sample(errors, mask)
    plain = mean_by_sample(errors, None)
    (gradient,) = torch.autograd.grad(found.sum(), errors, retain_graph=True)
    (without,) = torch.autograd.grad(plain.sum(), errors)
    assert found[0] == plain[0]
    assert torch.equal(gradient[0], without[0])
    assert gradient[mask.expand_as(gradient) == 0].abs().sum() == 0
    for number in range(batch):
        alone = mean_by_sample(errors[number : number + 1], mask[number : number + 1])
        weight = mask[number].expand_as(errors[number]).double()
        torch.testing.assert_close(found[number : number + 1], alone)
        expected = (errors[number].double() * weight).sum() / weight.sum()
        assert float(found[number].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def clip_pipe() -> Any:
    space = LatentSpace(4, 8, 64, 64, None, None, time_scale=4)  # type: ignore[arg-type]
    return SimpleNamespace(latent_space=space, device="cpu")


def grey(value: int, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.new("RGB", size, (value,) * 3)


def test_masks_of_clips_follow_the_latent_frames_and_what_units_before_left_out():
    pipe = clip_pipe()
    shape = {"height": 32, "width": 48, "num_frames": 5}
    clip = [grey(255), *(grey(value) for value in (0, 0, 255, 255))]
    first_given = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1, 1)
    found = LossMask().process(pipe, **shape, mask=[clip, grey(255), None])["loss_mask"]
    assert found.shape == (3, 1, 2, 4, 6)
    assert found.amax(dim=(3, 4)).tolist() == [[[1, 0.5]], [[1, 1]], [[1, 1]]]
    assert torch.equal(found[:1], mask_of_latents(pipe, clip, 5))
    both = LossMask().process(pipe, **shape, mask=[clip], loss_mask=first_given)["loss_mask"]
    assert both.amax(dim=(3, 4)).tolist() == [[[0, 0.5]]]
    assert LossMask().process(pipe, **shape, loss_mask=first_given)["loss_mask"] is first_given
    for mask, problem in ((clip[:3], "3 frames"), (grey(255, (32, 32)), "32x32 pixels"), (grey(0), "black")):
        with pytest.raises(DsctlError, match=problem):
            LossMask().process(pipe, **shape, mask=[mask])


@pytest.fixture
def masked_folder(dataset_folder: Path) -> Path:
    """The pictures with masks, also as their alpha channels; `white` is what is left of them, `full` is all white."""
    rows = ["image,clear,white,mask,full,prompt"]
    for number in range(4):
        picture = np.array(Image.open(dataset_folder / f"{number}.png"))
        counts = np.zeros(picture.shape[:2], dtype=np.uint8)
        counts[: 16 + 8 * (number % 2), 8:40] = 255
        white = np.where(counts[..., None] > 0, picture, np.uint8(255))
        rgba = np.concatenate([picture, counts[..., None]], axis=2)
        for name, pixels in (("clear", rgba), ("white", white), ("mask", counts), ("full", counts | 255)):
            Image.fromarray(pixels).save(dataset_folder / f"{name}{number}.png")
        files = ",".join(f"{name}{number}.png" for name in ("", "clear", "white", "mask", "full"))
        rows.append(f"{files},picture {number}")
    (dataset_folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return dataset_folder


def losses(output: Path) -> list[tuple[float, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["grad_norm"]) for line in lines]


def test_runs_with_masks(masked_folder: Path, tiny_folder: Path, tmp_path: Path):
    def run(name: str, **options: Any) -> list[tuple[float, float]]:
        base = {"model": str(tiny_folder), "dataset_base_path": masked_folder, "device": "cpu", "lora_rank": 2}
        length = {"max_steps": 3, "batch_size": 2, "learning_rate": 0.01, "output_path": tmp_path / name}
        train(TrainOptions(**{**base, **length, **options}))
        return losses(tmp_path / name)

    asked = {"data_file_keys": "image,mask", "extra_inputs": "mask"}
    plain, masked = run("plain"), run("masked", **asked)
    assert masked != plain
    assert run("full", **asked, column="mask=full,other=mask") == plain
    assert run("uncached", **asked, cache=False) == masked
    alpha = run("alpha", column="image=clear,other=image,files=mask", extra_inputs="mask", mask_from_alpha=True)
    assert alpha == run("white", **asked, column="image=white,other=image")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"extra_inputs": "mask"}, "nothing says where masks are"),
        ({"extra_inputs": "mask", "mask_from_alpha": True, "column": "other=mask"}, "no picture has an alpha channel"),
        ({"extra_inputs": "mask", "data_file_keys": "image,mask", "mask_from_alpha": True}, "a column mask"),
        ({"extra_inputs": "mask", "mask_from_alpha": True}, "already has a column 'mask'"),
        ({"extra_inputs": "mask", "data_file_keys": "image,mask", "task": "direct_distill"}, "extra input 'mask'"),
    ],
)
def test_masks_that_cannot_be_had_are_refused(
    options: dict[str, Any], problem: str, masked_folder: Path, tiny_folder: Path, tmp_path: Path
):
    base = {"model": str(tiny_folder), "dataset_base_path": masked_folder, "device": "cpu", "lora_rank": 2}
    with pytest.raises(DsctlError, match=problem):
        train(TrainOptions(**base, output_path=tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


def test_a_mask_of_another_shape_is_refused_with_its_row(masked_folder: Path, tiny_folder: Path, tmp_path: Path):
    Image.new("L", (64, 32), 255).save(masked_folder / "mask2.png")
    base = {"model": str(tiny_folder), "dataset_base_path": masked_folder, "device": "cpu", "lora_rank": 2}
    asked = {"data_file_keys": "image,mask", "extra_inputs": "mask", "output_path": tmp_path / "out"}
    for size in ({}, {"height": 32, "width": 32}):
        with pytest.raises(DsctlError, match=r"row 3 \(line 4\), mask 'mask2.png': the mask"):
            train(TrainOptions(**base, **asked, **size))
