"""BasePipeline on a toy family: placement, checks, pixels, guidance and the denoising loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.family import Component, Family, Reader, Schedule
from dsctl_core.pipeline import BasePipeline

TOY = Family(
    name="toy",
    title="Toy",
    pipeline="",
    pipeline_classes=(),
    components=(Component("dit", "transformer", "diffusers", "Dit"), Component("vae", "vae", "diffusers", "Vae")),
    readers=(Reader("tokenizer", "tokenizer", "tokenizer/"),),
    presets=(),
    lora_targets=(),
    division_factor=16,
    schedule=Schedule(),
    defaults={},
    extra_inputs=(),
    published={},
    tiny={},
)


class ToyPipeline(BasePipeline):
    family = TOY


def toy(**models: nn.Module) -> ToyPipeline:
    pipe = ToyPipeline(models, None, Schedule(), torch_dtype=torch.float32, device="cpu")
    pipe.units = []
    return pipe


def solid(colour: Any, mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> Image.Image:
    return Image.new(mode, size, colour)


def test_components_are_modules_under_their_own_names() -> None:
    pipe = toy(dit=nn.Linear(2, 3))
    assert [name for name, _ in pipe.named_parameters()] == ["dit.weight", "dit.bias"]
    assert pipe.vae is None


def test_a_component_that_was_not_loaded_is_named() -> None:
    with pytest.raises(DsctlError, match="needs the vae of Toy, which was not loaded") as caught:
        toy(dit=nn.Linear(1, 1)).load_models_to_device(("dit", "vae"))
    assert "vae/" in str(caught.value.hint)


def test_components_are_moved_only_when_they_are_elsewhere() -> None:
    pipe = toy(dit=nn.Linear(1, 1).to("meta"))
    pipe.device = torch.device("meta")
    here = pipe.component("dit").weight
    pipe.load_models_to_device(("dit",))
    assert pipe.component("dit").weight is here
    pipe.vae = nn.Linear(1, 1)
    pipe.load_models_to_device(("vae",))
    assert pipe.component("vae").weight.device == torch.device("meta")


@pytest.mark.parametrize(
    ("height", "width", "problem", "hint"),
    [
        (100, 96, "height 100", "96 or 112"),
        (96, 1000, "width 1000", "992 or 1008"),
        (0, 96, "height 0", "nearest: 16"),
        (-16, 96, "height -16", "nearest: 16"),
        (9, 96, "height 9", "nearest: 16"),
    ],
)
def test_a_size_that_does_not_divide_names_the_nearest(height: int, width: int, problem: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"{problem} is not a multiple of 16") as caught:
        toy().check_size(height, width)
    assert hint in str(caught.value.hint)


def test_a_size_that_divides_is_accepted() -> None:
    toy().check_size(16, 1328)


def test_every_pixel_level_survives_the_way_there_and_back() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([levels, levels.T, 255 - levels], axis=-1))
    tensor = toy().preprocess_image(image)
    assert tensor.shape == (1, 3, 16, 16)
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert np.array_equal(np.array(toy().vae_output_to_image(tensor)[0]), np.array(image))


def test_pixels_are_rounded_and_clamped_not_truncated() -> None:
    values = torch.tensor([-3.0, -1.0, 99.4 / 127.5 - 1, 99.6 / 127.5 - 1, 1.0, 3.0])
    picture = toy().vae_output_to_image(values.expand(1, 3, 1, 6))[0]
    assert np.array(picture)[0, :, 0].tolist() == [0, 0, 99, 100, 255, 255]


@pytest.mark.parametrize("image", [solid((1, 2, 3, 0), "RGBA"), solid((7, 0), "LA")])
def test_what_is_transparent_becomes_white(image: Image.Image) -> None:
    assert (toy().preprocess_image(image) == 1).all()


def test_height_comes_before_width() -> None:
    assert toy().preprocess_image(solid("red", size=(6, 4))).shape == (1, 3, 4, 6)


def test_model_fn_gets_what_its_signature_names_and_no_more() -> None:
    def model_fn(dit: nn.Module, latents: Tensor, timestep: Tensor, extra: int, unused: int = 5) -> Tensor:
        return latents * extra * unused

    pipe = toy(dit=nn.Identity())
    pipe.model_fn = model_fn
    ones = torch.ones(1)
    assert pipe.call_model_fn(latents=ones, timestep=ones, extra=2, stranger=9) == 10
    with pytest.raises(DsctlError, match="needs the input 'extra'"):
        pipe.call_model_fn(latents=ones, timestep=ones)


def test_model_fn_without_its_model_is_refused() -> None:
    pipe = toy()
    pipe.model_fn = lambda dit, latents: latents
    with pytest.raises(DsctlError, match="needs the dit"):
        pipe.call_model_fn(latents=torch.ones(1), timestep=torch.ones(1))


def knowing(x0: Tensor) -> ToyPipeline:
    """A pipeline whose model knows that the picture is `x0`: its velocity points there from anywhere."""
    pipe = toy(dit=nn.Identity())
    pipe.model_fn = lambda dit, latents, timestep: (latents - x0) / (timestep / 1000)
    return pipe


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_a_model_that_knows_the_picture_makes_it(steps: int) -> None:
    x0, noise = torch.randn(2, 2, 4, 6, 6)
    pipe = knowing(x0)
    pipe.scheduler.set_timesteps(steps)
    made = pipe.denoise({"latents": noise}, {}, {}, cfg_scale=1)
    torch.testing.assert_close(made, x0, atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_mask_decides_what_is_made_and_what_is_kept(steps: int) -> None:
    x0, noise, kept = torch.randn(3, 2, 4, 6, 6)
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., :3] = 1
    pipe = knowing(x0)
    pipe.scheduler.set_timesteps(steps)
    inputs = {"latents": noise, "latents_mask": mask, "input_latents": kept}
    made = pipe.denoise(inputs, {}, {}, cfg_scale=1)
    torch.testing.assert_close(made, torch.where(mask > 0, x0, kept), atol=1e-5, rtol=0)


def test_guidance_calls_the_model_for_both_prompts() -> None:
    seen = []

    def model_fn(dit: nn.Module, latents: Tensor, timestep: Tensor, prompt: float) -> Tensor:
        seen.append(prompt)
        return torch.full_like(latents, prompt)

    pipe = toy(dit=nn.Identity())
    pipe.model_fn = model_fn
    pipe.scheduler.set_timesteps(1)
    made = pipe.denoise({"latents": torch.zeros(1, 1)}, {"prompt": 3.0}, {"prompt": 1.0}, cfg_scale=2.5)
    assert seen == [3.0, 1.0]
    assert made.item() == -(1 + 2.5 * (3 - 1))


def test_progress_sees_every_step() -> None:
    steps = []

    def bar(timesteps: Any) -> Any:
        for timestep in timesteps:
            steps.append(float(timestep))
            yield timestep

    pipe = knowing(torch.zeros(1, 1))
    pipe.scheduler.set_timesteps(5)
    pipe.denoise({"latents": torch.ones(1, 1)}, {}, {}, cfg_scale=1, progress_bar_cmd=bar)
    assert steps == pipe.scheduler.timesteps.tolist()


def test_a_family_must_write_its_own_inputs() -> None:
    with pytest.raises(NotImplementedError, match="ToyPipeline"):
        ToyPipeline.inputs_from_rows([])
