"""A family that needs everything runs without a change outside of its folder: parts, inference, control networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dsctl_core.commands.download import _of_preset
from dsctl_core.commands.infer import infer
from dsctl_core.control import ControlUse, HookControl, control_network
from dsctl_core.data import LoadVideo
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families import families, find_preset
from dsctl_core.families.resolve import resolve_model
from dsctl_core.family import Denoiser
from dsctl_core.media.made_file import about_made
from dsctl_core.options import InferOptions
from dsctl_core.options.hub import DownloadOptions
from dsctl_core.placement import Placement
from tests.conftest import REPOSITORY
from tests.contract.conftest import load_dawn
from tests.families_fixture.tiny import FOLDER, added_families, write_dawn
from tests.tiny_models import randomize

BOUNDARY = 0.875
STEPS = 6


def calls_of(pipe: Any) -> list[tuple[str, float]]:
    """Return a list to which every call of a denoiser adds its name and its timestep."""
    calls: list[tuple[str, float]] = []
    for name in ("dit", "dit_2"):
        pipe.component(name).register_forward_pre_hook(
            lambda _, given, name=name: calls.append((name, float(given[1].max())))
        )
    return calls


def frames(clip: Any) -> np.ndarray:
    return np.stack([np.array(frame).astype(int) for frame in clip.frames])


def test_it_is_found_as_long_as_its_folder_is_added_and_no_file_outside_of_it_knows_of_it() -> None:
    others = set(families())
    assert "dawn" not in others
    with added_families():
        assert set(families()) == {*others, "dawn"}
    assert "dawn" not in families()
    sources = [path for package in ("dsctl", "dsctl_core") for path in (REPOSITORY / package).rglob("*.py")]
    assert len(sources) > 100
    assert [path for path in sources if "dawn" in path.read_text(encoding="utf-8").lower()] == []
    assert FOLDER.joinpath("dawn", "family.py").is_file()


def test_what_a_model_consists_of_is_said_by_its_preset_or_its_index(dawn_folder: Path, tmp_path: Path) -> None:
    small, large = (resolve_model(name) for name in ("dawn-small", "dawn-large"))
    assert (small.parts.denoisers, small.parts.division_factor) == ((Denoiser("dit"),), 16)
    assert small.parts.components == ("dit", "vae", "text_encoder")
    assert (large.parts.denoisers[1].high, large.parts.division_factor) == (BOUNDARY, 32)
    assert set(large.parts.components) == {"dit", "dit_2", "vae", "text_encoder", "image_encoder"}
    assert set(small.reader_configs) == {"tokenizer"}
    assert large.reader_configs["processor"].model_id == "Dawn/Readers"
    assert len(large.configs_of(["dit_2"])) == 1
    assert set(find_preset("dawn-large")[0].component_files(large.preset)) == set(large.parts.components)
    one = resolve_model(str(write_dawn(tmp_path / "one", boundary=None, sees=False)))
    assert one.parts.components == ("dit", "vae", "text_encoder")
    two = resolve_model(str(dawn_folder))
    assert [(each.name, each.low, each.high) for each in two.parts.denoisers] == [
        ("dit", BOUNDARY, 1.0),
        ("dit_2", 0.0, BOUNDARY),
    ]


def test_a_second_denoiser_is_refused_without_an_index_that_places_it(dawn_folder: Path, tmp_path: Path) -> None:
    names = ("transformer", "transformer_2")
    for name in names:
        (tmp_path / name).symlink_to(dawn_folder / name)
    with pytest.raises(DsctlError, match="nothing says at which noise levels the dit_2 of Dawn acts"):
        resolve_model(model_paths=json.dumps([str(tmp_path / name) for name in names])).parts  # noqa: B018
    one = resolve_model(model_paths=json.dumps([str(tmp_path / "transformer")]))
    assert one.parts.denoisers == (Denoiser("dit"),)
    beside = resolve_model(model_paths=json.dumps([str(dawn_folder / name) for name in names]))
    assert [denoiser.name for denoiser in beside.parts.denoisers] == ["dit", "dit_2"]
    assert set(beside.reader_configs) == {"tokenizer", "processor"}


def test_what_is_downloaded_of_a_preset_is_what_it_has() -> None:
    with added_families():
        parts = [_of_preset(*find_preset(name), DownloadOptions(what=(name,))) for name in ("dawn-small", "dawn-large")]
    small, large = ({each.repo_id: each.patterns for each in wanted} for wanted in parts)
    networks = {f"{name}/*.safetensors" for name in ("dit", "vae", "text_encoder")}
    assert list(small) == ["Dawn/Small"]
    assert set(small["Dawn/Small"]) == {*networks, "tokenizer/"}
    assert large["Dawn/Readers"] == ("processor/",)
    assert {"dit_2/*.safetensors", "image_encoder/*", "tokenizer/"} <= set(large["Dawn/Large"])


def test_units_ask_for_what_is_optional_and_what_is_needed_but_absent_is_named(dawn: Any, tmp_path: Path) -> None:
    red = Image.new("RGB", (32, 32), "red")
    plain, shown = (dawn("a", seed=1, cfg_scale=1, **some) for some in ({}, {"first_image": red}))
    assert (frames(plain) != frames(shown)).any()
    blind = load_dawn(write_dawn(tmp_path / "one", boundary=None, sees=False))
    assert not blind.has("image_encoder")
    assert dawn.has("image_encoder")
    same, other = (blind("a", seed=1, cfg_scale=1, **some) for some in ({}, {"first_image": red}))
    assert (frames(same) == frames(other)).all()
    with pytest.raises(DsctlError, match="needs the image_encoder of Dawn, which was not loaded"):
        blind.component("image_encoder")
    with pytest.raises(DsctlError, match="there is no processor") as caught:
        blind.reader("processor")
    assert "processor_config" in str(caught.value.hint)
    with pytest.raises(UsageError, match="unknown reader of dawn 'procesor'"):
        blind.reader("procesor")


def test_a_reader_is_loaded_when_it_is_first_used(dawn_folder: Path, tmp_path: Path) -> None:
    pipe = load_dawn(dawn_folder)
    assert pipe.readers._loaded == {}
    assert pipe.reader("processor") is pipe.reader("processor")
    assert list(pipe.readers._loaded) == ["processor"]
    assert pipe.tokenizer is pipe.reader("tokenizer")


@pytest.mark.parametrize("boundary", [0.0, BOUNDARY, 1.0])
def test_each_level_is_the_business_of_the_denoiser_in_whose_range_it_is(dawn: Any, boundary: float) -> None:
    dawn.parts = dawn.family.parts(dawn.components, {"boundary_ratio": boundary})
    calls = calls_of(dawn)
    dawn("a", seed=1, cfg_scale=1, num_inference_steps=STEPS)
    assert [name for name, _ in calls] == ["dit" if level >= 1000 * boundary else "dit_2" for _, level in calls]
    assert len(calls) == STEPS
    assert len({name for name, _ in calls}) == (2 if boundary == BOUNDARY else 1 + (boundary == 1.0))


def test_a_level_at_the_boundary_goes_to_the_denoiser_of_high_noise(dawn: Any) -> None:
    assert dawn.denoiser_of(torch.tensor([875.0, 1000.0])) == "dit"
    assert dawn.denoiser_of(torch.tensor(np.nextafter(np.float32(875), np.float32(0)))) == "dit_2"
    with pytest.raises(DsctlError, match="noise levels of the dit and of the dit_2"):
        dawn.denoiser_of(torch.tensor([900.0, 800.0]))


def test_one_denoiser_at_a_time_is_asked_onto_the_device(dawn: Any) -> None:
    class Noted(Placement):
        def use(self, pipe: Any, name: str, beside: Any = ()) -> None:
            used.append(name)
            super().use(pipe, name, beside)

    used: list[str] = []
    dawn.placement = Noted()
    dawn("a", seed=1, num_inference_steps=STEPS)
    assert used == ["dit", "dit_2"]


def test_the_others_are_sent_to_main_memory_but_for_those_that_stay(dawn: Any) -> None:
    class Network(nn.Linear):
        def to(self, *where: Any, **_: Any) -> Any:
            moved.append((self.name, str(where[0])))
            return self

    moved: list[tuple[str, str]] = []
    dawn.dit, dawn.dit_2 = Network(1, 1), Network(1, 1)
    dawn.dit.name, dawn.dit_2.name = "dit", "dit_2"
    dawn.device = torch.device("meta")
    Placement().use(dawn, "dit_2")
    assert moved == [("dit", "cpu"), ("dit_2", "meta")]
    moved.clear()
    Placement(staying=["dit"]).use(dawn, "dit_2")
    assert moved == [("dit_2", "meta")]
    moved.clear()
    dawn.device = torch.device("cpu")
    Placement().use(dawn, "dit_2")
    assert moved == []


def test_each_denoiser_has_its_own_guidance_scale(dawn: Any) -> None:
    calls = calls_of(dawn)
    dawn("a", seed=1, num_inference_steps=STEPS, cfg_scale=[3.0, 1.0])
    count = {name: len([each for each, _ in calls if each == name]) for name in ("dit", "dit_2")}
    levels = {name: len({level for each, level in calls if each == name}) for name in ("dit", "dit_2")}
    assert count == {"dit": 2 * levels["dit"], "dit_2": levels["dit_2"]}
    made = {scales: frames(dawn("a", seed=1, cfg_scale=scales)) for scales in ((3.0, 3.0), (3.0, 2.0), 3.0)}
    assert (made[3.0] == made[3.0, 3.0]).all()
    assert (made[3.0] != made[3.0, 2.0]).any()
    with pytest.raises(UsageError, match="3 guidance scales for 2 denoisers"):
        dawn("a", seed=1, cfg_scale=[1, 2, 3])


def test_clips_have_4n_plus_1_frames_and_a_batch_is_its_samples(dawn: Any) -> None:
    for count in (1, 5, 9):
        assert len(dawn("a", seed=1, num_frames=count).frames) == count
    with pytest.raises(UsageError, match=r"6 frames is not 4 \* n \+ 1"):
        dawn("a", num_frames=6)
    together = dawn(["a", "a small fox"], seed=[1, 2])
    for made, prompt, seed in zip(together, ["a", "a small fox"], [1, 2], strict=True):
        assert np.abs(frames(made) - frames(dawn(prompt, seed=seed))).max() <= 1


def test_the_command_writes_clips_of_a_new_family_and_no_pictures(dawn_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="which holds no clip, and Dawn makes clips"):
        infer(InferOptions(model=str(dawn_folder), prompt="a", output=tmp_path / "a.png"))
    path = tmp_path / "a.mp4"
    infer(InferOptions(model=str(dawn_folder), prompt="a", output=path, num_inference_steps=1, device="cpu"))
    assert [frame.size for frame in LoadVideo(5)(path)] == [(32, 32)] * 5
    assert about_made(path).items() >= {"num_frames": 5, "fps": 8, "prompt": "a"}.items()


def test_an_inpaint_mask_keeps_frames_and_places(dawn: Any) -> None:
    dawn.scheduler.set_timesteps(2)
    clip = [Image.new("RGB", (32, 32), (40 * number, 0, 0)) for number in range(5)]
    masks = [Image.new("L", (32, 32), 0 if number == 0 else 255) for number in range(5)]
    shared = {"input_video": clip, "inpaint_mask": masks, "height": 32, "width": 32, "num_frames": 5, "seed": [1]}
    shared, _, _ = dawn.run_units(shared, {"prompt": "a"}, {})
    assert shared["latents_mask"].shape == (1, 1, 2, 4, 4)
    assert shared["latents_mask"][0, 0, :, 0, 0].tolist() == [0, 1]
    assert shared["input_latents"].shape == shared["noise"].shape == (1, 16, 2, 4, 4)
    one = dawn.run_units({**shared, "inpaint_mask": masks[1]}, {"prompt": "a"}, {})[0]
    assert one["latents_mask"].min() == 1
    with pytest.raises(UsageError, match="2 inpaint masks for 5 frames"):
        dawn.run_units({**shared, "inpaint_mask": masks[:2]}, {"prompt": "a"}, {})


def with_control(pipe: Any, name: str, seed: int = 5) -> nn.Module:
    """Put a random control network into `pipe`."""
    from dsctl_core.families.dawn.networks import DawnControl  # type: ignore[import-not-found]
    from dsctl_core.families.dawn.pipeline import dawn_control  # type: ignore[import-not-found]

    network = randomize(DawnControl(), torch.Generator().manual_seed(seed)).requires_grad_(False)
    pipe.attach_side_network(dawn_control(name), network)
    return network


def test_control_networks_act_in_their_range_as_much_as_they_are_told(dawn: Any) -> None:
    base = frames(dawn("a", seed=1))
    network = with_control(dawn, "edges")
    asked: list[float] = []
    network.register_forward_pre_hook(lambda _, given: asked.append(1))
    given = {"edges_image": Image.effect_noise((32, 32), 50).convert("RGB")}

    def made(**use: float) -> np.ndarray:
        asked.clear()
        return frames(dawn("a", seed=1, control_inputs=given, controls={"edges": ControlUse(**use)}))

    assert (frames(dawn("a", seed=1)) == base).all(), "without a picture it does nothing"
    assert (made(scale=0) == base).all()
    assert asked == []
    full = made()
    assert (full != base).any()
    assert len(asked) == 8, "four steps of two passes"
    assert (made(scale=0.5) != full).any()
    made(end=BOUNDARY)
    assert 0 < len(asked) < 8
    with pytest.raises(UsageError, match="cannot act from sigma 0.2 down to 0.6"):
        ControlUse(start=0.2, end=0.6)


def test_several_control_networks_are_added_up(dawn: Any) -> None:
    for name in ("edges", "depth"):
        with_control(dawn, name)
    picture = Image.effect_noise((32, 32), 50).convert("RGB")
    both = {"edges_image": picture, "depth_image": picture}
    half = {name: ControlUse(scale=0.5) for name in ("edges", "depth")}
    one = frames(dawn("a", seed=1, control_inputs={"edges_image": picture}))
    assert np.abs(frames(dawn("a", seed=1, control_inputs=both, controls=half)) - one).max() <= 1


class Doubling(nn.Module):
    """A network that scales what every block makes by 1 + tanh(a weight) times the mean of its control latents."""

    def __init__(self, value: float = 0.3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))


def hooks(network: Any, denoiser: Any, scale: float, control: Tensor) -> dict[str, Callable[..., Tensor]]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * (1 + scale * torch.tanh(network.weight) * control.mean())

    return {f"blocks.{number}": hook for number in range(len(denoiser.blocks))}


@pytest.mark.parametrize("recompute", [False, True])
def test_hooks_are_there_for_one_call_and_in_what_is_computed_again(dawn: Any, recompute: bool) -> None:
    network = Doubling()
    dawn.attach_side_network(control_network("twice", HookControl("twice", hooks), []), network)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "latents": torch.randn(1, 16, 2, 4, 4, generator=generator),
        "timestep": torch.tensor([900.0]),
        "prompt_embeds": torch.randn(1, 24, 32, generator=generator),
    }
    plain = dawn.call_model_fn(**inputs)
    control = torch.full((1, 16, 2, 4, 4), 0.5)
    made = dawn.call_model_fn(**inputs, twice_latents=control, use_gradient_checkpointing=recompute)
    assert not any(module._forward_hooks for module in dawn.component("dit").modules())
    assert not torch.equal(plain, made)
    made.square().mean().backward()
    gradient = network.weight.grad.clone()
    step = 1e-3
    with torch.no_grad():
        high, low = (
            _loss(dawn, network, inputs, control, 0.3 + sign * step) for sign in (1, -1)
        )  # the derivative, measured
    assert gradient.item() == pytest.approx((high - low) / (2 * step), rel=1e-2)
    assert torch.equal(dawn.call_model_fn(**inputs), plain)


def _loss(pipe: Any, network: Doubling, inputs: dict[str, Any], control: Tensor, weight: float) -> float:
    network.weight.data.fill_(weight)
    return float(pipe.call_model_fn(**inputs, twice_latents=control).square().mean())
