"""QwenImagePipeline's other half: batches, seeds, dtypes, and what training asks of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.qwen_image.pipeline import QwenImagePipeline
from dsctl_core.memory.quantize import store_in_fp8

FAST: dict[str, Any] = {"height": 32, "width": 48, "num_inference_steps": 2, "cfg_scale": 1.0}


def pixels(image: Any) -> np.ndarray:
    return np.array(image).astype(np.int32)


def rows(*sizes: tuple[int, int]) -> list[dict[str, Any]]:
    return [
        {"image": Image.new("RGB", size, (40 * i, 9, 200)), "prompt": f"prompt {i}", "seed": i, "_row": i}
        for i, size in enumerate(sizes)
    ]


def test_one_prompt_gives_a_picture_and_a_list_gives_a_list(pipe: QwenImagePipeline) -> None:
    picture = pipe("a", **FAST)
    assert isinstance(picture, Image.Image)
    assert picture.size == (48, 32)
    assert [each.size for each in pipe(["a"], **FAST)] == [(48, 32)]


def test_the_same_seed_gives_the_same_picture_and_another_another(pipe: QwenImagePipeline) -> None:
    first, second, other = (pixels(pipe("a", seed=seed, **FAST)) for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_without_a_seed_torch_decides(pipe: QwenImagePipeline) -> None:
    torch.manual_seed(5)
    first, second = pixels(pipe("a", **FAST)), pixels(pipe("a", **FAST))
    torch.manual_seed(5)
    assert np.array_equal(pixels(pipe("a", **FAST)), first)
    assert not np.array_equal(first, second)


def test_one_seed_serves_every_prompt(pipe: QwenImagePipeline) -> None:
    both = pipe(["a", "a"], seed=1, **FAST)
    assert len(both) == 2
    for made in both:
        assert np.abs(pixels(made) - pixels(pipe("a", seed=1, **FAST))).max() <= 1


def test_bfloat16_weights_give_nearly_the_same_picture(pipe: QwenImagePipeline, tiny_folder: Path) -> None:
    half = QwenImagePipeline.from_pretrained(device="cpu", model_configs=[ModelConfig(path=tiny_folder)])
    assert half.torch_dtype == half.dit.dtype == half.vae.dtype == half.text_encoder.dtype == torch.bfloat16
    expected, made = (pixels(each("a", seed=1, **FAST)) for each in (pipe, half))
    assert np.abs(made - expected).mean() < 6


def test_a_transformer_stored_in_eight_bits_computes_in_the_dtype_asked_for(
    pipe: QwenImagePipeline, tiny_folder: Path
) -> None:
    eight = QwenImagePipeline.from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(path=tiny_folder)]
    )
    store_in_fp8(eight.dit, torch.float32)
    assert eight.dit.img_in.weight.dtype.itemsize == 1
    expected, made = (pixels(each("a", seed=1, **FAST)) for each in (pipe, eight))
    assert 0 < np.abs(made - expected).mean() < 12


def test_only_what_was_asked_for_is_loaded(tiny_folder: Path) -> None:
    part = QwenImagePipeline.from_pretrained(
        device="cpu",
        torch_dtype=torch.float32,
        component_dtypes={"vae": torch.bfloat16},
        model_configs=[ModelConfig(path=tiny_folder)],
        only=("vae", "dit"),
    )
    assert part.text_encoder is None
    assert (part.dit.dtype, part.vae.dtype) == (torch.float32, torch.bfloat16)
    assert not any(parameter.requires_grad for parameter in part.parameters())
    assert not any(module.training for module in part.modules())


def test_components_can_be_named_one_by_one(pipe: QwenImagePipeline, tiny_folder: Path) -> None:
    parts = QwenImagePipeline.from_pretrained(
        device="cpu",
        torch_dtype=torch.float32,
        model_configs=[
            ModelConfig(path=tiny_folder / "transformer" / "diffusion_pytorch_model.safetensors"),
            ModelConfig(path=tiny_folder / "text_encoder"),
            ModelConfig(path=[tiny_folder / "vae" / "diffusion_pytorch_model.safetensors"]),
        ],
        tokenizer_config=ModelConfig(path=tiny_folder / "tokenizer"),
    )
    assert np.array_equal(pixels(parts("a", seed=1, **FAST)), pixels(pipe("a", seed=1, **FAST)))


def test_in_training_the_picture_is_encoded_and_the_latents_are_noise(pipe: QwenImagePipeline) -> None:
    pipe.scheduler.set_timesteps(training=True)
    shared, posi, nega = pipe.run_units(*QwenImagePipeline.inputs_from_rows(rows((48, 32), (48, 32))))
    assert shared["input_latents"].shape == (2, 16, 4, 6)
    assert torch.equal(shared["latents"], shared["noise"])
    assert not torch.equal(shared["noise"][0], shared["noise"][1])
    assert posi["prompt_embeds"].shape[0] == 2
    assert nega == {"negative_prompt": ""}


def test_the_spec_example_needs_neither_seed_nor_batch(pipe: QwenImagePipeline) -> None:
    pipe.scheduler.set_timesteps(training=True)
    inputs = {
        "input_image": rows((48, 32))[0]["image"],
        "height": 32,
        "width": 48,
        "cfg_scale": 1,
        "rand_device": pipe.device,
        "use_gradient_checkpointing": True,
        "use_gradient_checkpointing_offload": False,
    }
    shared, posi, _ = pipe.run_units(inputs, {"prompt": "a"}, {"negative_prompt": ""})
    velocity = pipe.call_model_fn(timestep=torch.tensor([500.0]), **shared, **posi)
    assert velocity.shape == shared["input_latents"].shape == (1, 16, 4, 6)


def test_the_noise_of_a_sample_does_not_depend_on_its_batch(pipe: QwenImagePipeline) -> None:
    pipe.scheduler.set_timesteps(training=True)
    both = rows((48, 32), (48, 32))
    together = pipe.run_units(*QwenImagePipeline.inputs_from_rows(both))[0]["noise"]
    alone = pipe.run_units(*QwenImagePipeline.inputs_from_rows(both[1:]))[0]["noise"]
    assert torch.equal(together[1:], alone)


def test_latents_that_are_given_are_kept_and_need_no_vae(
    pipe: QwenImagePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pipe._modules, "vae", None)
    pipe.scheduler.set_timesteps(training=True)
    shared, posi, nega = QwenImagePipeline.inputs_from_rows(rows((48, 32)))
    given = torch.randn(1, 16, 4, 6)
    assert pipe.run_units({**shared, "input_latents": given}, posi, nega)[0]["input_latents"] is given


def test_pictures_of_two_sizes_are_not_one_batch() -> None:
    with pytest.raises(DsctlError, match="48x32 and of 32x32"):
        QwenImagePipeline.inputs_from_rows(rows((48, 32), (48, 32), (32, 32)))


@pytest.mark.parametrize("name", ["image", "prompt"])
def test_a_row_without_what_training_needs_is_named(name: str) -> None:
    bad = rows((48, 32), (48, 32))
    del bad[1][name]
    with pytest.raises(DsctlError, match=f"row 1 has no '{name}'"):
        QwenImagePipeline.inputs_from_rows(bad)


def test_an_extra_input_is_refused_because_there_is_none() -> None:
    with pytest.raises(UsageError, match="unknown extra input 'edit_image'"):
        QwenImagePipeline.inputs_from_rows(rows((48, 32)), extra_inputs=("edit_image",))


def gradients(pipe: QwenImagePipeline, **checkpointing: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The velocity and the gradient of every transformer weight, for fixed inputs."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, 4, 6, generator=generator)
    embeds = torch.randn(2, 5, 32, generator=generator)
    velocity = pipe.call_model_fn(
        latents=latents, timestep=torch.tensor([800.0, 100.0]), prompt_embeds=embeds, **checkpointing
    )
    return velocity.detach(), list(torch.autograd.grad(velocity.square().sum(), used(pipe)))


def used(pipe: QwenImagePipeline) -> list[torch.nn.Parameter]:
    """All but the last block's text branch, which leads nowhere."""
    return [p for name, p in pipe.dit.named_parameters() if "blocks.0." in name]


@pytest.mark.parametrize(
    "checkpointing",
    [
        {"use_gradient_checkpointing": True},
        {"use_gradient_checkpointing": False, "use_gradient_checkpointing_offload": True},
    ],
)
def test_gradient_checkpointing_changes_no_number(
    pipe: QwenImagePipeline, monkeypatch: pytest.MonkeyPatch, checkpointing: dict[str, bool]
) -> None:
    from dsctl_core.memory import recompute as module

    calls = []
    original = module.run_checkpointed
    monkeypatch.setattr(
        module,
        "run_checkpointed",
        lambda *args, **kwargs: calls.append((args[1], args[2] is not None)) or original(*args, **kwargs),
    )
    pipe.dit.requires_grad_(True)
    try:
        plain, expected = gradients(pipe)
        assert not calls
        velocity, actual = gradients(pipe, **checkpointing)
        on = checkpointing["use_gradient_checkpointing"], checkpointing.get("use_gradient_checkpointing_offload", False)
        assert calls == [on] * len(pipe.dit.transformer_blocks)
        gradients(pipe)
        assert len(calls) == len(pipe.dit.transformer_blocks), "checkpointing was not switched off again"
    finally:
        pipe.dit.requires_grad_(False)
    assert torch.equal(velocity, plain)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)
