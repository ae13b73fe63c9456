"""Direct distillation: the student goes the very way of inference, with a gradient, in the memory of one step."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from dsctl_core import ModelConfig
from dsctl_core.errors import DsctlError
from dsctl_core.families import families, load_family, pipeline_class
from dsctl_core.losses import DirectDistillLoss
from dsctl_core.losses.direct_distill import read_row
from dsctl_core.training.model.task_module import TaskModule
from tests.contract.media import FRAMES
from tests.tiny_models import write_tiny_model

SIZE = {"height": 64, "width": 96}
ROW = {"num_inference_steps": "4", "cfg_scale": "1", "seed": "5"}


def load(name: str, folder: Path) -> Any:
    write_tiny_model(name, folder)
    return pipeline_class(load_family(name)).from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(folder)]
    )


@pytest.fixture
def pipe(tmp_path: Path) -> Any:
    return load("qwen-image", tmp_path / "tiny")


def row(clips: bool = False, **values: Any) -> dict[str, Any]:
    picture = Image.new("RGB", (96, 64), "teal")
    media = {"video": [picture] * FRAMES} if clips else {"image": picture}
    return {**media, "prompt": "a fox", "_row": 2, **ROW, **values}


def inferred(pipe: Any, steps: int, cfg_scale: float, seed: int, negative_prompt: str = "") -> torch.Tensor:
    """Return the latents that inference ends with, in steps of Euler."""
    pipe.solver = "euler"
    frames = {} if pipe.family.time_division is None else {"num_frames": FRAMES, "input_video": None}
    with torch.no_grad():
        return pipe.generate(
            prompt="a fox",
            negative_prompt=negative_prompt,
            num_inference_steps=steps,
            denoising_strength=1.0,
            progress_bar_cmd=lambda steps: steps,
            shared={
                **SIZE,
                **frames,
                "cfg_scale": cfg_scale,
                "input_image": None,
                "inpaint_mask": None,
                "edit_image": [row()["image"]] if pipe.family.decomposes else None,
                # as in training
                "embedded_guidance": 1.0 if getattr(pipe.dit.config, "guidance_embeds", False) else None,
                "seed": [seed],
                "rand_device": "cpu",
            },
        )


def module_on(pipe: Any, **settings: Any) -> TaskModule:
    return TaskModule(pipe, "direct_distill", **{"lora_base_model": "dit", "lora_rank": 2, **settings})


@pytest.mark.parametrize("family", families())
@pytest.mark.parametrize(("steps", "cfg_scale", "negative"), [(1, 1, ""), (4, 1, ""), (3, 3.5, "dim")])
def test_a_student_that_is_the_teacher_has_no_loss(
    family: str, steps: int, cfg_scale: float, negative: str, tmp_path: Path
):
    pipe = load(family, tmp_path / "tiny")
    picture = inferred(pipe, steps, cfg_scale, 5, negative)
    module = module_on(pipe)
    clips = pipe.family.time_division is not None
    given = row(clips, num_inference_steps=steps, cfg_scale=cfg_scale, negative_prompt=negative)
    encode = module.encode

    def with_picture(rows: list[dict[str, Any]], picture: torch.Tensor = picture) -> list[dict[str, Any]]:
        return [{**sample, "shared.input_latents": picture} for sample in encode(rows)]

    module.encode = with_picture  # type: ignore[method-assign]
    assert float(module(given).detach()) == pytest.approx(0, abs=1e-12)
    for other in ({"num_inference_steps": steps + 1}, {"cfg_scale": cfg_scale + 1}, {"seed": 6}):
        assert float(module({**given, **other}).detach()) > 1e-7, other
    if negative:
        assert float(module({**given, "negative_prompt": ""}).detach()) > 1e-9


def test_the_schedule_of_training_is_left_as_it_was(pipe: Any):
    module = module_on(pipe)
    before = pipe.scheduler.timesteps
    module(row()).backward()
    assert pipe.scheduler.training
    assert torch.equal(pipe.scheduler.timesteps, before)


def plain_loss(pipe: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Compute the same loss step by step, keeping every activation."""
    pipe.scheduler.set_timesteps(inputs["num_inference_steps"], dynamic_shift_len=(64 // 16) * (96 // 16))
    latents = inputs["noise"]
    for timestep in pipe.scheduler.timesteps:
        velocity = pipe.call_model_fn(**{**inputs, "latents": latents, "timestep": timestep})
        latents = pipe.scheduler.step(velocity, timestep, latents)
    pipe.scheduler.set_timesteps(1000, training=True)
    return (latents - inputs["input_latents"]).square().mean()


def inputs_of(pipe: Any, steps: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        **SIZE,
        "noise": torch.randn(1, 16, 8, 12, generator=generator),
        "input_latents": torch.randn(1, 16, 8, 12, generator=generator),
        "prompt_embeds": torch.randn(1, 9, 32, generator=generator),
        "prompt_embeds_mask": None,
        "num_inference_steps": steps,
        "cfg_scale": 1,
    }


@pytest.mark.parametrize("offload", [False, True])
def test_recomputing_the_steps_gives_the_gradients_of_keeping_them(pipe: Any, offload: bool):
    module = module_on(pipe)
    inputs = inputs_of(pipe, 3)
    found = []
    for function in (lambda: DirectDistillLoss(pipe, **inputs, use_gradient_checkpointing_offload=offload), plain_loss):
        for parameter in module.trainable_modules():
            parameter.grad = None
        value = function() if function is not plain_loss else plain_loss(pipe, inputs)
        value.backward()
        gradients = [p.grad.clone() for p in module.trainable_modules() if p.grad is not None]
        found.append((value.detach(), gradients))
    (ours, own), (plain, expected) = found
    torch.testing.assert_close(ours, plain, atol=1e-7, rtol=1e-6)
    assert len(own) == len(expected) > 10
    assert any(float(gradient.abs().max()) > 1e-6 for gradient in own)
    for a, b in zip(own, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made while it is on and still there; `peak` is the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self._note(value.untyped_storage())
        return result

    def _note(self, storage: Any) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self.known:
            return
        self.known.add(place)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, place, size)

    def _gone(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.live -= size


def peak_bytes(compute: Any) -> int:
    with LiveBytes() as counted:
        compute().backward()
    return counted.peak


def test_memory_does_not_grow_with_the_steps(pipe: Any):
    module = module_on(pipe)
    few, many = (inputs_of(pipe, steps) for steps in (2, 8))
    DirectDistillLoss(pipe, **few).backward()  # the gradients themselves are there from here on
    assert any(p.grad is not None for p in module.trainable_modules())
    ours = [peak_bytes(lambda each=each: DirectDistillLoss(pipe, **each)) for each in (few, many)]
    plain = [peak_bytes(lambda each=each: plain_loss(pipe, each)) for each in (few, many)]
    growth, plain_growth = ours[1] - ours[0], plain[1] - plain[0]
    assert plain_growth > 6 * 64 * 1024, "what is measured sees the activations of a step"
    # What is left is each step's own latents and its timestep.
    assert growth <= 6 * (few["noise"].nbytes + 64)
    assert growth < plain_growth / 15


def test_a_row_of_text_as_in_a_csv_file_is_read():
    assert read_row(ROW) == {
        "num_inference_steps": 4,
        "cfg_scale": 1.0,
        "seed": [5],
        "rand_device": "cpu",
        "negative_prompt": [""],
    }
    assert read_row({**ROW, "rand_device": "cuda", "embedded_guidance": "2.5"})["embedded_guidance"] == 2.5


@pytest.mark.parametrize("name", ["num_inference_steps", "cfg_scale", "seed"])
@pytest.mark.parametrize("empty", [None, "", float("nan"), "absent"])
def test_a_column_that_is_missing_is_named_with_its_row(pipe: Any, name: str, empty: Any):
    given = row(**{name: empty})
    if empty == "absent":
        del given[name]
    with pytest.raises(DsctlError, match=f"row 2 has no '{name}'") as caught:
        module_on(pipe)(given)
    assert "num_inference_steps" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"num_inference_steps": "4.5"}, "num_inference_steps '4.5'"),
        ({"num_inference_steps": "0"}, "num_inference_steps '0'"),
        ({"num_inference_steps": "many"}, "num_inference_steps 'many', which is not a whole number"),
        ({"cfg_scale": "-1"}, "cfg_scale '-1'"),
        ({"cfg_scale": "inf"}, "cfg_scale 'inf'"),
        ({"seed": "-3"}, "seed '-3'"),
        ({"seed": "1.5"}, "seed '1.5'"),
        ({"rand_device": "gpu"}, "rand_device 'gpu'"),
    ],
)
def test_a_value_that_cannot_be_is_refused(values: dict, problem: str):
    with pytest.raises(DsctlError) as caught:
        read_row({**ROW, **values})
    assert problem in caught.value.problem
    assert caught.value.hint


def test_guidance_that_a_network_does_not_take_is_refused(pipe: Any):
    with pytest.raises(DsctlError, match="row 2 has embedded_guidance, which Qwen-Image does not take"):
        module_on(pipe)(row(embedded_guidance=3))


def test_a_batch_is_the_mean_of_its_rows(pipe: Any):
    module = module_on(pipe)
    rows = [row(seed=seed, prompt=prompt, cfg_scale=2) for seed, prompt in ((1, "a fox"), (2, "two foxes in the snow"))]
    alone = [float(module([each]).detach()) for each in rows]
    assert alone[0] != alone[1]
    assert float(module(rows).detach()) == pytest.approx(sum(alone) / 2, rel=1e-5)


@pytest.mark.parametrize("name", ["num_inference_steps", "cfg_scale"])
def test_a_batch_of_rows_that_differ_is_refused_with_what_differs(pipe: Any, name: str):
    with pytest.raises(DsctlError, match=f"samples whose {name} is") as caught:
        module_on(pipe)([row(**{name: 2}), row(**{name: 3})])
    assert "a batch size of 1" in str(caught.value.hint)


def test_the_row_s_own_seed_is_taken_whatever_the_loop_drew(pipe: Any):
    module = module_on(pipe)
    values = [float(module({**row(), "_seed": "5", "seed": drawn}).detach()) for drawn in (11, 12)]
    assert values[0] == values[1] == float(module(row()).detach())
    with pytest.raises(DsctlError, match="has no 'seed'"):
        module({**row(), "_seed": None, "seed": 11})
