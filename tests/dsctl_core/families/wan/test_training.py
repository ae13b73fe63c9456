"""Training Wan: loss and gradients of plain diffusers and peft, given frames, and two denoisers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from torch import Tensor

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.dataset import validate
from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError
from dsctl_core.families.resolve import resolve_model
from dsctl_core.families.wan.units import padded_text
from dsctl_core.files.safetensors import read_safetensors, safetensors_header
from dsctl_core.lora import fuse_lora
from dsctl_core.lora.layers import tuner_layers
from dsctl_core.losses.timesteps import Objective
from dsctl_core.options import CacheOptions, TrainOptions
from dsctl_core.options.dataset import DatasetValidateOptions
from dsctl_core.training.model.task_module import TaskModule
from tests.dsctl_core.families.wan.conftest import KINDS, Pair, Pairs, clip, load, write_clips

SIDES = {"width": 64, "height": 32}
LEVEL = torch.tensor(912.5)


def module_of(pair: Pair, component: str = "dit", **settings: Any) -> TaskModule:
    """A LoRA with weights that do something on a fresh copy of the model."""
    pipe = load(pair.folder)
    plain = Objective(weighting="none")
    module = TaskModule(pipe, "sft", lora_base_model=component, lora_rank=2, objective=plain, **settings)
    for number, layer in enumerate(tuner_layers(pipe.component(component)).values()):
        generator = torch.Generator().manual_seed(number)
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.2, generator=generator)
    return module


def row_of(seed: int = 3, **cells: Any) -> dict[str, Any]:
    return {"video": clip(seed, 5, **SIDES), "prompt": f"number {seed}", "seed": seed, "_timestep": LEVEL, **cells}


def plain_loss(pair: Pair, ours: Any, row: dict[str, Any], first_frame: bool) -> tuple[Tensor, Any]:
    """The loss of one row with the layers of `ours` put on diffusers' transformer by peft, and that transformer."""
    dit = copy.deepcopy(pair.official.transformer).requires_grad_(False)
    layers = tuner_layers(ours)
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=list(layers)), dit)
    for name, layer in layers.items():
        made = dit.get_submodule(name)
        for part in ("lora_A", "lora_B"):
            getattr(made, part)["default"].weight.data = getattr(layer, part)["default"].weight.data.clone()
    official, kind = pair.official, pair.kind
    vae, frames = official.vae, row["video"]
    mean, std = (torch.tensor(each).view(1, -1, 1, 1, 1) for each in (vae.config.latents_mean, vae.config.latents_std))
    images = [official.video_processor.preprocess(each, height=32, width=64) for each in frames]
    with torch.no_grad():
        x0 = (vae.encode(torch.stack(images, dim=2)).latent_dist.mode() - mean) / std
        text = official.encode_prompt(row["prompt"], None, False, max_sequence_length=512)[0]
        seen, condition = None, None
        if kind.startswith(("i2v", "flf2v")):
            whole = pair.from_image()
            last = images[-1] if kind == "flf2v" else None
            _, condition = whole.prepare_latents(images[0], 1, 16, 32, 64, 5, torch.float32, "cpu", last_image=last)
            if whole.image_encoder is not None:
                seen = whole.encode_image([frames[0], frames[-1]][: 1 + (last is not None)], "cpu")
    noise = torch.randn(x0.shape[1:], generator=torch.Generator().manual_seed(row["seed"]))[None]
    sigma = LEVEL / 1000
    noisy, timestep = (1 - sigma) * x0 + sigma * noise, LEVEL[None]
    if first_frame:
        noisy[:, :, 0] = x0[:, :, 0]
        timestep = timestep[:, None].repeat(1, 4)
        timestep[:, :2] = 0  # a row of two patches in each of two latent frames
    hidden = noisy if condition is None else torch.cat([noisy, condition], dim=1)
    errors = (dit(hidden, timestep, text, seen)[0] - (noise - x0)).square()
    return (errors[:, :, 1:] if first_frame else errors).mean(), dit


@pytest.mark.parametrize("kind", [*KINDS, "ti2v from its first frame"])
def test_loss_and_gradients_are_those_of_plain_diffusers_and_peft(pairs: Pairs, kind: str) -> None:
    name, _, first = kind.partition(" ")
    pair, extra = pairs[name], {"extra_inputs": ["input_image"]} if first else {}
    module, row = module_of(pair, **extra), row_of()
    loss = module(row)
    loss.backward()
    expected, dit = plain_loss(pair, module.pipe.dit, row, bool(first))
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    compared = 0
    for layer_name, layer in tuner_layers(module.pipe.dit).items():
        for part in ("lora_A", "lora_B"):
            ours = getattr(layer, part)["default"].weight.grad
            theirs = getattr(dit.get_submodule(layer_name), part)["default"].weight.grad
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
            compared += bool(ours.abs().max() > 1e-5)
    assert compared >= 36


def watched(module: TaskModule) -> list[Tensor]:
    """Return a list to which every velocity of the transformer is added, with its gradient kept."""
    made: list[Tensor] = []

    def hook(_: Any, __: Any, output: Tensor) -> None:
        made.append(output)
        if output.requires_grad:
            output.retain_grad()

    module.pipe.dit.proj_out.register_forward_hook(hook)
    return made


def test_the_first_frame_has_no_gradient_and_rows_without_one_are_trained_as_from_text(pairs: Pairs) -> None:
    pair = pairs["ti2v"]
    module = module_of(pair, extra_inputs=["input_image"])
    velocities = watched(module)
    rows = [row_of(3), row_of(4, input_image=None)]
    mixed = module(rows)
    mixed.backward()
    gradient = velocities[0].grad
    assert gradient is not None
    tokens = gradient.unflatten(1, (2, -1))  # (B, t, tokens of a frame, D)
    assert tokens[0, 0].abs().max() == 0
    assert min(tokens[0, 1].abs().max(), tokens[1, 0].abs().max(), tokens[1, 1].abs().max()) > 0
    alone = [float(module(row).detach()) for row in rows]
    assert float(mixed.detach()) == pytest.approx(sum(alone) / 2, abs=1e-6)
    text_only = module_of(pair)
    assert alone[1] == pytest.approx(float(text_only(row_of(4)).detach()), abs=1e-6)
    assert alone[0] != pytest.approx(float(text_only(row_of(3)).detach()), abs=1e-3)


def test_a_picture_among_clips_is_no_first_frame(pairs: Pairs) -> None:
    picture = {"video": clip(3, 1, **SIDES), "prompt": "one", "seed": 3, "_timestep": LEVEL}
    with_extra, without = (module_of(pairs["ti2v"], extra_inputs=extra) for extra in (["input_image"], []))
    assert float(with_extra(picture).detach()) == pytest.approx(float(without(picture).detach()), abs=1e-6)


def test_a_given_frame_may_be_a_picture_of_its_own(pairs: Pairs) -> None:
    module = module_of(pairs["i2v-a14b"])
    frames = clip(3, 5, **SIDES)
    as_in_clip, other = frames[0], clip(8, 1, **SIDES)
    usual, same, different = (
        float(module(row).detach())
        for row in (row_of(3), row_of(3, input_image=[as_in_clip]), row_of(3, input_image=other))
    )
    assert usual == same != different
    for cells, said in (
        ({"input_image": "a.png"}, "has input_image, but not as one picture"),
        ({"input_image": None}, "needs an input_image"),
        ({"input_image": [Image.new("RGB", (32, 32))]}, "the input image is 32x32"),
    ):
        with pytest.raises(DsctlError, match=said):
            module(row_of(3, **cells))


@pytest.mark.parametrize(
    ("kind", "extra", "said"),
    [
        ("t2v", "input_image", "takes no input_image"),
        ("ti2v", "end_image", "takes no end_image"),
        ("i2v", "end_image", "reads 1 frame through the image encoder, but 2 are given"),
        ("i2v-a14b", "first", "unknown extra input 'first'"),
    ],
)
def test_frames_that_a_model_does_not_take_are_refused(pairs: Pairs, kind: str, extra: str, said: str) -> None:
    with pytest.raises(DsctlError, match=said):
        module_of(pairs[kind], extra_inputs=[extra])(row_of())


def test_a_clip_of_one_frame_is_refused_where_the_first_is_given(pairs: Pairs) -> None:
    with pytest.raises(DsctlError, match="a clip of one frame is its own input_image"):
        module_of(pairs["i2v"])({**row_of(), "video": clip(3, 1, **SIDES)})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips") / "data")


def settings_of(pair: Pair, data: Path, **more: Any) -> dict[str, Any]:
    return {"model": str(pair.folder), "dataset_base_path": data, "num_frames": 5, "device": "cpu", **more}


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_both_denoisers_are_trained_in_one_run_each_at_its_own_levels_with_a_file_for_each(
    pairs: Pairs, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, drawn = pairs["t2v-a14b"], []
    draw = Objective.draw

    def noted(self: Objective, *given: Any) -> Tensor:
        levels = draw(self, *given)
        drawn.extend((self.sigmas, float(level)) for level in levels)
        return levels

    monkeypatch.setattr(Objective, "draw", noted)
    settings = settings_of(pair, data, lora_base_model="dit,dit_2", lora_rank=2, learning_rate=0.1, seed=5)
    result = train(TrainOptions(**settings, dataset_repeat=4, max_steps=8, output_path=tmp_path / "out"))
    assert [file.name for file in result.checkpoints] == ["step-8.dit.safetensors", "step-8.dit_2.safetensors"]
    assert {sigmas for sigmas, _ in drawn} == {(0.875, 1.0), (0.0, 0.875)}
    assert all((level >= 875) == (sigmas[0] == 0.875) for sigmas, level in drawn)
    for name, file in zip(("dit", "dit_2"), result.checkpoints, strict=True):
        about = safetensors_header(file)[0]["__metadata__"]
        assert (about["component"], about["family"]) == (name, "wan")
        tensors = read_safetensors(file)[0]
        assert len(tensors) == 40
        assert all(key.startswith("transformer.blocks.") for key in tensors)
        assert all(tensor.abs().max() > 0 for tensor in tensors.values())
    with pytest.raises(DsctlError, match="has no layers for the dit, only for dit_2"):
        fuse_lora(load(pair.folder), result.checkpoints[1], "dit")


def test_a_lokr_on_both_denoisers_has_a_file_for_each_that_changes_that_one(
    pairs: Pairs, data: Path, tmp_path: Path
) -> None:
    pair = pairs["t2v-a14b"]
    settings = settings_of(pair, data, lora_base_model="dit,dit_2", lora_rank=2, learning_rate=0.1, seed=5)
    kind = {"network": "lokr", "lokr_factor": 2, "lora_format": "comfyui"}
    result = train(TrainOptions(**settings, **kind, dataset_repeat=4, max_steps=8, output_path=tmp_path / "out"))
    for name, other, file in zip(("dit", "dit_2"), ("dit_2", "dit"), result.checkpoints, strict=True):
        about = safetensors_header(file)[0]["__metadata__"]
        assert (about["component"], about["network"], about["factor"]) == (name, "lokr", "2")
        assert all(key.startswith("diffusion_model.blocks.") for key in read_safetensors(file)[0])
        before, after = load(pair.folder), load(pair.folder)
        fuse_lora(after, file, None)
        changed = [
            key
            for key, tensor in after.component(name).state_dict().items()
            if not torch.equal(tensor, before.component(name).state_dict()[key])
        ]
        assert len(changed) == 20
        one, same = (pipe.component(other).state_dict() for pipe in (before, after))
        assert all(torch.equal(one[key], same[key]) for key in one)


@pytest.mark.parametrize("kind", ["i2v-a14b", "flf2v", "ti2v"])
def test_a_cache_of_clips_gives_the_numbers_of_training_without_one(
    pairs: Pairs, data: Path, tmp_path: Path, kind: str
) -> None:
    pair = pairs[kind]
    extra = {"extra_inputs": ("input_image",)} if kind == "ti2v" else {}
    settings = settings_of(pair, data, mixed_precision="no", **extra)
    make_cache(CacheOptions(**settings, output_path=tmp_path / "cache"))
    dataset = CachedDataset(tmp_path / "cache")
    sample = dataset.sample(dataset.entries[0])
    prompt = "a red fox"
    assert sample["posi.prompt_embeds"].shape == (1, len(pair.ours.tokenizer(prompt).input_ids), 16), "no padding"
    numbers = sum(sample[f"shared.{name}"].numel() for name in ("input_latents", "condition") if _given(sample, name))
    numbers += sample["shared.image_embeds"].numel() if _given(sample, "image_embeds") else 0
    reckon = pair.ours.family.cache_bytes
    reckoned, of_prompt = reckon(dict(pair.ours.dit.config), 64, 32, 5, len(prompt))
    assert reckoned == 2 * numbers
    assert of_prompt == pytest.approx(2 * sample["posi.prompt_embeds"].numel(), rel=1)
    more = {"lora_rank": 2, "max_steps": 3, "seed": 3, "device": "cpu", "mixed_precision": "no"}
    train(TrainOptions(**more, from_cache=tmp_path / "cache", output_path=tmp_path / "second"))
    train(TrainOptions(**{**settings, **more}, cache=False, output_path=tmp_path / "whole"))
    assert losses(tmp_path / "second") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 3


def _given(sample: dict[str, Any], name: str) -> bool:
    return sample.get(f"shared.{name}") is not None


def test_the_cache_of_a_clip_at_480p_is_reckoned_with_its_condition() -> None:
    family = resolve_model("wan2.1-i2v-14b-480p").family
    latents = 21 * 60 * 104  # of 81 frames at 480x832
    for variant, numbers in ((None, 16 * latents), ("i2v-a14b", 36 * latents), ("i2v-14b", 36 * latents + 257 * 1280)):
        assert family.cache_bytes is not None
        found, prompt = family.cache_bytes(family.sizes("dit", variant), 832, 480, 81, 400)
        assert (found, prompt) == (2 * numbers, 2 * 101 * 4096)


def test_rows_with_and_without_a_first_frame_are_validated_cached_and_trained(
    pairs: Pairs, data: Path, tmp_path: Path
) -> None:
    folder = write_clips(tmp_path / "mixed")
    clip(4, 1, **SIDES)[0].save(folder / "first.png")
    rows = ["video,input_image,prompt", "0.mp4,first.png,one", "1.mp4,,another", "2.gif,,a gif"]
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    columns = {"data_file_keys": ("video", "input_image")}
    model = str(pairs["ti2v"].folder)
    found = validate(DatasetValidateOptions(path=folder, model=model, num_frames=5, **columns))
    assert found.clean
    (folder / "last.csv").write_text("\n".join(rows).replace("input_image", "end_image") + "\n")
    last = DatasetValidateOptions(
        path=folder,
        metadata=folder / "last.csv",
        model=model,
        num_frames=5,
        data_file_keys=("video", "end_image"),
    )
    assert not validate(last).clean, "a family says which columns may be empty"
    settings = settings_of(pairs["ti2v"], folder, extra_inputs=("input_image",), **columns)
    more = {"lora_rank": 2, "max_steps": 4, "seed": 3}
    for cache in (True, False):
        train(TrainOptions(**settings, **more, cache=cache, output_path=tmp_path / f"{cache}"))
    assert losses(tmp_path / "True") == losses(tmp_path / "False")
    cached = CachedDataset(tmp_path / "True" / "cache")
    given = [bool(cached.sample(entry)["shared.given_frames"].any()) for entry in cached.entries]
    assert sorted(given) == [False, False, True]


def test_text_of_a_cache_is_padded_as_in_inference() -> None:
    embeds = torch.ones(1, 3, 4)
    assert padded_text(embeds, None).sum() == 12
    assert padded_text(embeds, None).shape == (1, 512, 4)
    with pytest.raises(DsctlError, match="513 tokens"):
        padded_text(torch.ones(1, 513, 4), None)
