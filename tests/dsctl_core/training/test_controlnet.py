"""Training a control network, and a LoRA beside it: in two stages, with samples and validation; using it afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dsctl_core.cache.manifest import read_manifest
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.infer import infer
from dsctl_core.commands.train import dry_run, train
from dsctl_core.errors import DsctlError
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.options import CacheOptions, InferOptions, TrainOptions
from tests.dsctl_core.training.conftest import picture

BLOCK = 2 * (32 * 32 + 32) + 2 * 32  # parameters beside a transformer block of 32 channels
COUNT = 2 * BLOCK + 64 * 32 + 32


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four pictures with a control picture and a mask each."""
    folder = tmp_path / "data"
    (folder / "control").mkdir(parents=True)
    lines = ["image,control_image,control_mask,prompt"]
    for number in range(4):
        picture(seed=number).save(folder / f"{number}.png")
        picture(seed=9 + number).convert("L").save(folder / "control" / f"{number}.png")
        mask = Image.new("L", (48, 32))
        mask.paste(255, (8 * number, 0, 48, 32))
        mask.save(folder / "control" / f"mask_{number}.png")
        lines.append(f"{number}.png,control/{number}.png,control/mask_{number}.png,number {number}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture
def options(tiny_folder: Path, data: Path, tmp_path: Path) -> Callable[..., TrainOptions]:
    def make(out: str, **settings: Any) -> TrainOptions:
        base = {"model": str(tiny_folder), "dataset_base_path": data, "output_path": tmp_path / out, "device": "cpu"}
        base |= {"controlnet": ("blockwise",), "trainable_models": ("controlnet",), "learning_rate": 1e-2}
        given = {**base, "max_steps": 8, "seed": 3, **settings}
        return TrainOptions(**{name: value for name, value in given.items() if value is not None})

    return make


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_safetensors(path)[0]


def test_a_network_and_a_lora_are_trained_in_two_stages_as_in_one(
    options: Callable[..., TrainOptions], data: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    beside = {"lora_rank": 2, "validation_split": 0.25, "validation_every": 4, "sample_every": 8}
    small = {"sample_height": 32, "sample_width": 48, "sample_steps": 1}
    whole = train(options("whole", cache=False, **beside, **small))
    split = train(options("split", **beside, **small))
    assert read_manifest(tmp_path / "split" / "cache").recipe.model["controlnet"] == ["blockwise"]
    assert sorted(path.name for path in split.checkpoints) == ["step-8.controlnet.safetensors", "step-8.safetensors"][
        :1
    ] + ["step-8.dit.safetensors"]
    for one, other in zip(whole.checkpoints, split.checkpoints, strict=True):
        made, same = weights(one), weights(other)
        assert all(torch.equal(tensor, same[name]) for name, tensor in made.items())
    network = weights(tmp_path / "split" / "step-8.controlnet.safetensors")
    assert sum(tensor.numel() for tensor in network.values()) == COUNT
    assert all(tensor.abs().max() > 0 for tensor in network.values()), "the layers that were zero have learned too"
    lines = [json.loads(line) for line in (tmp_path / "split" / "metrics.jsonl").read_text().splitlines()]
    assert sum("validation_loss" in line for line in lines) >= 2
    drawn = sorted((tmp_path / "split" / "samples").rglob("*.png"))
    assert [np.array(Image.open(path)).tolist() for path in drawn] == [
        np.array(Image.open(path)).tolist() for path in sorted((tmp_path / "whole" / "samples").rglob("*.png"))
    ]
    assert json.loads(Image.open(drawn[-1]).text["parameters"])["control_image"].startswith("control/")


def test_a_trained_file_is_used_and_trained_on(
    options: Callable[..., TrainOptions], data: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    before = {path: path.read_bytes() for path in tiny_folder.rglob("*.safetensors")}
    first = train(options("first"))
    assert all(path.read_bytes() == bytes_ for path, bytes_ in before.items())
    file, control = first.checkpoint, str(data / "control" / "0.png")

    def drawn(*networks: str) -> np.ndarray:
        made = InferOptions(
            model=str(tiny_folder),
            prompt="number 0",
            height=32,
            width=48,
            num_inference_steps=4,
            output=tmp_path / "out.png",
            device="cpu",
            **({"controlnet": networks, "control_image": (control,) * len(networks)} if networks else {}),
        )
        return np.array(Image.open(infer(made).files[0])).astype(int)

    plain, full = drawn(), drawn(str(file))
    assert np.abs(full - plain).max() > 2
    assert np.array_equal(drawn(f"{file}:0"), plain)
    assert np.array_equal(drawn(f"{file}@0.0001-0"), plain), "no level is in the range"
    assert not np.array_equal(drawn(f"{file}@1-0.9"), full)
    assert np.abs(drawn(f"{file}:0.5", f"{file}:0.5") - full).max() <= np.abs(full - plain).max()

    again = train(options("again", controlnet=(str(file),), learning_rate=1e-9, max_steps=1))
    assert all((tensor - weights(file)[name]).abs().max() < 1e-6 for name, tensor in weights(again.checkpoint).items())


def test_a_run_that_was_stopped_goes_on_to_the_bit_with_the_same_network_alone(
    options: Callable[..., TrainOptions], data: Path
) -> None:
    whole = train(options("whole", max_steps=4))
    train(options("parts", max_steps=2))
    with pytest.raises(DsctlError, match="weights of --controlnet, or its scale, was"):
        train(options("parts", max_steps=4, resume="latest", controlnet=("blockwise:0.5",)))
    rest = train(options("parts", max_steps=4, resume="latest"))
    assert all(
        torch.equal(tensor, weights(rest.checkpoint)[name]) for name, tensor in weights(whole.checkpoint).items()
    )


def test_a_mask_is_one_more_channel_and_a_cache_is_for_its_kind(
    options: Callable[..., TrainOptions], data: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    cache = tmp_path / "cache"
    make_cache(
        CacheOptions(
            model=str(tiny_folder), dataset_base_path=data, controlnet=("blockwise-inpaint",), output_path=cache
        )
    )
    given = {"model": None, "dataset_base_path": None, "from_cache": cache}
    prompts = tmp_path / "samples.jsonl"
    shown = {"prompt": "a", "control_image": str(data / "0.png"), "control_mask": str(data / "control/mask_1.png")}
    prompts.write_text(json.dumps(shown) + "\n" + json.dumps({"prompt": "b"}) + "\n")
    samples = {"sample_every": 8, "sample_prompts_file": prompts, "sample_steps": 1}
    size = {"sample_height": 32, "sample_width": 48}
    made = train(options("mask", controlnet=("blockwise-inpaint",), **given, **samples, **size))
    assert len(list((tmp_path / "mask" / "samples").rglob("*.png"))) == 4
    assert weights(made.checkpoint)["img_in.weight"].shape == (32, 68)
    for named, problem in {
        ("blockwise",): "was made with the control network blockwise-inpaint, but this run has blockwise",
        None: "controlnet is to be trained, but no control network is given",
    }.items():
        with pytest.raises(DsctlError, match=problem):
            train(options("other", controlnet=named, **given))


@pytest.mark.parametrize(("given", "missing"), [("control_mask", "control_image"), ("control_image", "control_mask")])
def test_a_sample_with_half_of_what_a_network_takes_is_refused_before_anything_is_loaded(
    options: Callable[..., TrainOptions], data: Path, tmp_path: Path, given: str, missing: str
) -> None:
    lines = tmp_path / "samples.jsonl"
    lines.write_text(json.dumps({"prompt": "a fox", given: str(data / "control/mask_1.png")}))
    samples = {"sample_every": 8, "sample_prompts_file": lines, "controlnet": ("blockwise-inpaint",)}
    with pytest.raises(DsctlError, match=f"the sample 'a fox' has {given}, but no {missing}") as caught:
        train(options("out", **samples))
    assert caught.value.hint == f"give {missing} too, or leave both out for a sample without control"
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_the_network(options: Callable[..., TrainOptions]) -> None:
    found = dry_run(options("dry", lora_rank=2))
    assert found.parameters["controlnet"] == COUNT
    assert found.parameters["trained"] > COUNT
    assert dry_run(options("dry")).disk["checkpoints"] == 4 * COUNT


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"controlnet": None}, "controlnet is to be trained, but no control network is given"),
        (
            {"trainable_models": None, "lora_rank": 4},
            "blockwise names a new control network, which changes",
        ),
        ({"controlnet": ("blockwise", "blockwise")}, "names a new control network, which changes nothing before"),
        ({"fp8_models": ("controlnet",)}, "controlnet cannot be stored in float8"),
        ({"lora_base_model": "controlnet"}, "controlnet cannot get a LoRA"),
        ({"controlnet": ("blockwise-inpaint",), "column": ("mask=control_mask",)}, "control_mask"),
        ({"compile": True}, "--compile and --controlnet are both given"),
    ],
)
def test_a_use_that_cannot_be_is_refused(
    options: Callable[..., TrainOptions], settings: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(DsctlError, match=problem):
        train(options("out", **settings))
    assert not (tmp_path / "out").exists()
