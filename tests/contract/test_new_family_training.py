"""A family that needs everything is trained by `dsctl train`'s own code: one denoiser, both, a control network."""

from __future__ import annotations

import functools
import json
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.lora import convert
from dsctl_core.commands.merge_lora import merge
from dsctl_core.commands.train import dry_run, train
from dsctl_core.data import LoadVideo
from dsctl_core.errors import DsctlError
from dsctl_core.files.safetensors import read_safetensors, safetensors_header
from dsctl_core.lora.files import read_lora
from dsctl_core.lora.layers import fuse_lora, load_lora, tuner_layers
from dsctl_core.losses.timesteps import Objective
from dsctl_core.media.made_file import about_made, write_made
from dsctl_core.options import CacheOptions, TrainOptions
from dsctl_core.options.lora_tools import LoraConvertOptions, MergeLoraOptions
from dsctl_core.placement import Placement
from dsctl_core.progress import NoProgress
from dsctl_core.training.model.task_module import TaskModule
from tests.contract.conftest import load_dawn
from tests.contract.test_new_family import BOUNDARY, calls_of, with_control
from tests.dsctl_core.training.runs import finished, start

PROMPTS = ["a red one", "a blue one", "two green ones", "a red one"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of 5 frames of 32x32."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(len(PROMPTS)):
        with av.open(str(folder / f"{number}.mp4"), "w") as file:
            stream = file.add_stream("mpeg4", rate=8)
            stream.width = stream.height = 32
            for frame in range(5):
                pixels = Random(10 * number + frame).randbytes(4 * 4 * 3)
                picture = Image.frombytes("RGB", (4, 4), pixels).resize((32, 32))
                file.mux(stream.encode(av.VideoFrame.from_image(picture)))
            file.mux(stream.encode())
    lines = [f"{number}.mp4,{prompt}" for number, prompt in enumerate(PROMPTS)]
    (folder / "metadata.csv").write_text("\n".join(["video,prompt", *lines]) + "\n")
    return folder


def settings_of(model: Path, data: Path) -> dict[str, Any]:
    return {
        "model": str(model),
        "dataset_base_path": data,
        "data_file_keys": ("video",),
        "num_frames": 5,
        "device": "cpu",
    }


def trained(model: Path, data: Path, out: Path, **settings: Any) -> Any:
    base = {**settings_of(model, data), "dataset_repeat": 4, "lora_rank": 2, "seed": 3, "output_path": out}
    return train(TrainOptions(**{**base, "max_steps": 8, **settings}))


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(files: Any) -> dict[str, Tensor]:
    return {f"{file.name}:{key}": value for file in files for key, value in read_safetensors(file)[0].items()}


def rows(count: int = 4, frames: int = 5) -> list[dict[str, Any]]:
    clips = [[Image.effect_noise((32, 32), 60 + n).convert("RGB") for _ in range(frames)] for n in range(count)]
    return [{"video": clip, "prompt": PROMPTS[n], "seed": 7 + n, "_row": n} for n, clip in enumerate(clips)]


@pytest.mark.parametrize(("name", "other"), [("dit", "dit_2"), ("dit_2", "dit")])
def test_one_denoiser_is_trained_on_its_own_levels_without_the_other(
    dawn_folder: Path, data: Path, tmp_path: Path, name: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[set[str]] = []
    drawn: list[float] = []
    draw = Objective.draw

    def noted(self: Objective, *given: Any) -> Tensor:
        levels = draw(self, *given)
        drawn.extend(levels.tolist())
        return levels

    init = TaskModule.__init__

    def noting(self: TaskModule, pipe: Any, *given: Any, **settings: Any) -> None:
        loaded.append(set(pipe.components))
        init(self, pipe, *given, **settings)

    monkeypatch.setattr(Objective, "draw", noted)
    monkeypatch.setattr(TaskModule, "__init__", noting)
    for cache in (True, False):
        result = trained(dawn_folder, data, tmp_path / f"{cache}", lora_base_model=name, cache=cache)
        assert name in loaded[-1]
        assert other not in loaded[-1]
        assert [file.name for file in result.checkpoints] == [f"step-8.{name}.safetensors"]
        assert safetensors_header(result.checkpoint)[0]["__metadata__"]["component"] == name
    assert len(drawn) == 16
    assert all((level >= 1000 * BOUNDARY) == (name == "dit") for level in drawn)
    assert losses(tmp_path / "True") == losses(tmp_path / "False"), "a cache changes nothing"
    assert "vae" not in loaded[0]


def test_both_are_trained_in_one_run_each_micro_batch_by_one_of_them(dawn: Any) -> None:
    module = TaskModule(dawn, "sft", lora_base_model="dit,dit_2", lora_rank=2)
    ran: list[set[str]] = []
    for name in ("dit", "dit_2"):
        dawn.component(name).register_forward_pre_hook(lambda *_, name=name: ran[-1].add(name))
    chosen = []
    for seed in range(200):
        ran.append(set())
        chosen.append(module._levels([{"seed": seed}, {"seed": seed + 1}])["denoiser"])
        if seed < 8:
            module([{**row, "seed": seed + n} for n, row in enumerate(rows(2))])
            assert ran[-1] == {chosen[-1]}
    table = dawn.scheduler.timesteps
    share = float((table >= 1000 * BOUNDARY).float().mean())
    assert 0.2 < share < 0.8
    assert Counter(chosen)["dit"] / len(chosen) == pytest.approx(share, abs=0.12)
    assert chosen == [module._levels([{"seed": seed}])["denoiser"] for seed in range(200)]


def test_a_run_of_both_is_resumed_to_the_bit_and_saves_a_file_for_each(
    dawn_folder: Path, data: Path, tmp_path: Path
) -> None:
    both = {"lora_base_model": "dit,dit_2", "save_steps": 4, "learning_rate": 1e-2}
    whole = trained(dawn_folder, data, tmp_path / "whole", **both)
    trained(dawn_folder, data, tmp_path / "half", **both, max_steps=4)
    half = trained(dawn_folder, data, tmp_path / "half", **both, resume="latest", allow_changed=("max_steps",))
    assert [file.name for file in whole.checkpoints] == ["step-8.dit.safetensors", "step-8.dit_2.safetensors"]
    assert losses(tmp_path / "whole") == losses(tmp_path / "half")
    one, other = weights(whole.checkpoints), weights(half.checkpoints)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert all(value.abs().max() > 0 for value in one.values()), "each of them learned something"
    first, second = (safetensors_header(file)[0]["__metadata__"] for file in whole.checkpoints)
    assert first["base_weights"] != second["base_weights"]
    plain = trained(dawn_folder, data, tmp_path / "plain", **both, cache=False)
    assert losses(tmp_path / "plain") == losses(tmp_path / "whole")
    assert all(torch.equal(value, one[key]) for key, value in weights(plain.checkpoints).items())


def test_two_processes_train_both_though_each_may_run_another_one(
    dawn_folder: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    finished(start(sys.executable, dawn_folder, data, out, processes=2, program="tests.families_fixture.train_both"))
    files = [out / f"step-6.{name}.safetensors" for name in ("dit", "dit_2")]
    assert len(losses(out)) == 6
    for file in files:
        learned = [value for key, value in read_safetensors(file)[0].items() if "lora_B" in key]
        assert all(value.abs().max() > 0 for value in learned)


@pytest.mark.parametrize("form", ["diffusers", "comfyui", "kohya", "peft"])
def test_a_lora_of_one_denoiser_goes_to_it_and_is_refused_on_the_other(
    dawn_folder: Path, data: Path, tmp_path: Path, form: str
) -> None:
    result = trained(
        dawn_folder, data, tmp_path / "out", lora_base_model="dit_2", max_steps=2, lora_format=form, learning_rate=0.1
    )
    pipe = load_dawn(dawn_folder)
    load_lora(pipe, result.checkpoint)
    assert not any("lora" in name for name, _ in pipe.component("dit").named_parameters())
    assert any("lora" in name for name, _ in pipe.component("dit_2").named_parameters())
    with pytest.raises(DsctlError, match="has no layers for the dit, only for dit_2"):
        fuse_lora(load_dawn(dawn_folder), result.checkpoint, "dit")
    with pytest.raises(DsctlError, match="has no layers for the dit, only for dit_2"):
        trained(dawn_folder, data, tmp_path / "on", lora_checkpoint=result.checkpoint, lora_base_model="dit")
    more = {"lora_checkpoint": result.checkpoint, "lora_base_model": "dit_2", "max_steps": 1}
    trained(dawn_folder, data, tmp_path / "more", **more)
    other = tmp_path / "other.safetensors"
    convert(LoraConvertOptions(file=result.checkpoint, output=other, to="comfyui", model=str(dawn_folder)))
    again, first = (read_lora(file, ("dit", "dit_2")).components for file in (other, result.checkpoint))
    assert set(again) == set(first) == {"dit_2"}
    before = pipe.component("dit_2").blocks[0].to_q.base_layer.weight.clone()
    fused = load_dawn(dawn_folder)
    fuse_lora(fused, result.checkpoint, None)
    assert not torch.equal(fused.component("dit_2").blocks[0].to_q.weight, before)


def test_a_lora_of_one_denoiser_is_merged_into_a_whole_copy_of_the_model(
    dawn_folder: Path, data: Path, tmp_path: Path
) -> None:
    result = trained(dawn_folder, data, tmp_path / "out", lora_base_model="dit_2", max_steps=2, learning_rate=0.1)
    merged = tmp_path / "merged"
    merge(MergeLoraOptions(model=str(dawn_folder), lora=(str(result.checkpoint),), output=merged))
    before = {file.relative_to(dawn_folder): file.read_bytes() for file in dawn_folder.rglob("*") if file.is_file()}
    after = {file.relative_to(merged): file.read_bytes() for file in merged.rglob("*") if file.is_file()}
    assert before.keys() == after.keys()
    changed = [str(n.parent) for n in before if n.suffix == ".safetensors" and after[n] != before[n]]
    assert changed == ["transformer_2"]
    assert load_dawn(merged).parts == load_dawn(dawn_folder).parts


def test_a_file_that_names_no_denoiser_goes_where_it_is_told(dawn_folder: Path, data: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    result = trained(dawn_folder, data, tmp_path / "out", lora_base_model="dit_2", max_steps=1)
    save_file(load_file(result.checkpoint), tmp_path / "foreign.safetensors")
    for asked, wanted in ((None, "dit"), ("dit", "dit"), ("dit_2", "dit_2")):
        pipe = load_dawn(dawn_folder)
        load_lora(pipe, tmp_path / "foreign.safetensors", component=asked)
        found = [n for n in ("dit", "dit_2") if any("lora" in key for key, _ in pipe.component(n).named_parameters())]
        assert found == [wanted]


def test_pictures_are_clips_of_one_frame(dawn_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.effect_noise((32, 48), 50).convert("RGB").save(folder / "a.png")
    (folder / "metadata.csv").write_text("image,prompt\na.png,a red one\n")
    base = {
        "model": str(dawn_folder),
        "dataset_base_path": folder,
        "dataset_repeat": 2,
        "device": "cpu",
    }
    for cache in (True, False):
        train(TrainOptions(**base, lora_rank=2, cache=cache, max_steps=2, output_path=tmp_path / f"{cache}"))
    assert losses(tmp_path / "True") == losses(tmp_path / "False")


def test_a_cache_holds_clips_once_and_has_no_part_of_what_is_absent(
    dawn_folder: Path, data: Path, tmp_path: Path
) -> None:
    settings = settings_of(dawn_folder, data)
    make_cache(CacheOptions(**settings, extra_inputs=("first_image",), output_path=tmp_path / "cache"))
    dataset = CachedDataset(tmp_path / "cache")
    assert set(dataset.manifest.recipe.components) == {"vae", "text_encoder", "image_encoder"}
    sample = dataset.sample(dataset.entries[0])
    assert sample["shared.input_latents"].shape == (1, 16, 2, 4, 4)
    assert sample["shared.loss_mask"].flatten().tolist() == [0, 1]
    assert sample["shared.image_embeds"].shape == (1, 5, 16)
    out = tmp_path / "out"
    again = {"from_cache": tmp_path / "cache", "dataset_repeat": 4, "lora_rank": 2, "max_steps": 4, "seed": 3}
    train(TrainOptions(**again, output_path=out, device="cpu"))
    trained(dawn_folder, data, tmp_path / "plain", extra_inputs=("first_image",), cache=False, max_steps=4)
    assert losses(out) == losses(tmp_path / "plain")
    low = {**again, "lora_base_model": "dit_2", "output_path": tmp_path / "low", "device": "cpu"}
    assert train(TrainOptions(**low)).checkpoint.name == "step-4.dit_2.safetensors"


def test_what_the_loss_mask_leaves_out_has_no_gradient_and_a_batch_is_the_mean_of_its_samples(
    dawn: Any, dawn_folder: Path
) -> None:
    module = TaskModule(dawn, "sft", lora_base_model="dit", lora_rank=2, extra_inputs=["first_image"])
    for layer in tuner_layers(dawn.component("dit")).values():
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    made: list[Tensor] = []

    def noted(given: Any) -> Any:
        def model_fn(*args: Any, **inputs: Any) -> Tensor:
            made.append(given(*args, **inputs))
            made[-1].retain_grad()
            return made[-1]

        return model_fn

    dawn.model_fn = functools.wraps(dawn.model_fn)(noted(dawn.model_fn))
    some = rows(3)
    loss = module(some)
    loss.backward()
    gradient = made[0].grad
    assert gradient is not None
    assert gradient[:, :, 0].abs().max() == 0
    assert gradient[:, :, 1].abs().max() > 0
    alone = [float(module(row).detach()) for row in some]
    assert float(loss.detach()) == pytest.approx(sum(alone) / 3, abs=1e-5)
    settings = {"lora_base_model": "dit", "lora_rank": 2}
    masked, plain = (
        TaskModule(load_dawn(dawn_folder), "sft", extra_inputs=extra, **settings) for extra in (["first_image"], [])
    )
    assert float(plain(some[0]).detach()) != pytest.approx(float(masked(some[0]).detach()), abs=1e-4)


def test_a_control_network_learns_while_the_denoisers_are_frozen(dawn: Any) -> None:
    network = with_control(dawn, "edges")
    module = TaskModule(dawn, "sft", trainable_models="edges", use_gradient_checkpointing=True)
    assert set(module.stages.second_components) == {"dit", "dit_2", "edges"}
    assert "edges_latents" in module.stages.needs
    picture = Image.effect_noise((32, 32), 50).convert("RGB")
    some = [{**row, "edges_image": picture} for row in rows(2)]
    optimizer = torch.optim.Adam(module.trainable_modules(), 1e-2)
    history = []
    for _ in range(8):
        loss = module(some)
        loss.backward()
        history.append(float(loss.detach()))
        assert all(parameter.grad is not None for parameter in network.parameters())
        assert not any(parameter.grad is not None for parameter in dawn.component("dit").parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert history[-1] < history[0]
    assert set(module.export_trained()["edges"]) == set(network.state_dict())
    with pytest.raises(DsctlError, match="samples with and without edges_latents"):
        module([some[0], rows(2)[1]])


def test_direct_distillation_goes_through_both_denoisers_with_a_gradient_to_each(dawn: Any) -> None:
    module = TaskModule(dawn, "direct_distill", lora_base_model="dit,dit_2", lora_rank=2)
    calls = calls_of(dawn)
    way = {"num_inference_steps": 4, "cfg_scale": 2.0, "negative_prompt": "blue"}
    module([{**rows(1)[0], **way}]).backward()
    assert {name for name, _ in calls} == {"dit", "dit_2"}
    for name in ("dit", "dit_2"):
        layers = tuner_layers(dawn.component(name)).values()
        assert any(layer.lora_B["default"].weight.grad.abs().max() > 0 for layer in layers)


def test_a_dry_run_tells_what_training_one_of_two_takes(dawn_folder: Path, data: Path, tmp_path: Path) -> None:
    options = {**settings_of(dawn_folder, data), "lora_rank": 2, "max_steps": 2, "dataset_repeat": 4}
    counts = {
        name: dry_run(TrainOptions(**options, lora_base_model=name, output_path=tmp_path / "out"), NoProgress())
        for name in ("dit", "dit_2", "dit,dit_2")
    }
    assert "dit" not in counts["dit_2"].parameters
    assert counts["dit,dit_2"].parameters["trained"] == 2 * counts["dit"].parameters["trained"] > 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cache", [True, False])
def test_samples_of_a_run_are_drawn_with_the_denoiser_that_is_not_trained_too(
    dawn_folder: Path, data: Path, tmp_path: Path, cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[str, bool]] = []
    use = Placement.use

    def noted(self: Placement, pipe: Any, name: str, beside: Any = ()) -> None:
        used.append((name, name in self.staying))
        use(self, pipe, name, beside)

    monkeypatch.setattr(Placement, "use", noted)
    settings = {"sample_every": 2, "sample_prompt": ("a fox",), "lora_base_model": "dit_2", "max_steps": 2}
    trained(dawn_folder, data, tmp_path / "out", **settings, cache=cache)
    assert used == [("dit", False), ("dit_2", True)] * 2, "before the first step, and after the second"
    files = [tmp_path / "out" / "samples" / f"step-{step}-1.mp4" for step in (0, 2)]
    made = [np.stack(LoadVideo(5)(file)) for file in files]
    about = about_made(files[0])
    assert about.items() >= {"prompt": "a fox", "step": 0, "num_frames": 5, "fps": 8}.items()
    expected = tmp_path / "expected.mp4"
    write_made(expected, load_dawn(dawn_folder)("a fox", seed=about["seed"]), {})
    assert [pixels.shape for pixels in made] == [(5, 32, 32, 3)] * 2
    assert np.array_equal(made[0], np.stack(LoadVideo(5)(expected)))


def test_validation_and_levels_outside_of_the_range(dawn_folder: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    trained(dawn_folder, data, out, lora_base_model="dit,dit_2", validation_split=0.25, batch_size=2, max_steps=2)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation_loss" in line] == [0, 1, 2]
    with pytest.raises(DsctlError, match="no level lies between .* and the sigmas 0.875 and 1"):
        trained(dawn_folder, data, tmp_path / "none", lora_base_model="dit", min_timestep_boundary=0.9)
