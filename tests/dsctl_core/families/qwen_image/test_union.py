"""InstantX's control networks for Qwen-Image beside diffusers' own pipelines, in float32 on a tiny random model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImageControlNetModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from dsctl_core.commands.train import train
from dsctl_core.families.controlnets import load_controlnet
from dsctl_core.families.qwen_image.controlnets import UNION
from dsctl_core.families.qwen_image.family import FAMILY, PUBLISHED
from dsctl_core.families.qwen_image.pipeline import QwenImagePipeline
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.options import TrainOptions
from tests.tiny_models import randomize

PROMPTS = ["a red fox", "a small yellow star in the corner"]
SIZE = {"height": 32, "width": 48, "num_inference_steps": 3}


@pytest.fixture(autouse=True)
def _as_it_was(pipe: QwenImagePipeline) -> Iterator[None]:
    """Take off the control networks of a test."""
    units = pipe.units
    yield
    for side in pipe.side_networks:
        del pipe._modules[side.name]
    pipe.units, pipe.side_networks = units, ()


def network(folder: Path, mask: bool = False, **more: Any) -> Any:
    """Write a random network to `folder`, with a config.json as it is published, and return it."""
    config = {**UNION[mask].new_config(FAMILY.tiny["dit"]), "num_layers": 1}
    made = randomize(QwenImageControlNetModel(**config), torch.Generator().manual_seed(4))
    made.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, "guidance_embeds": False, **more}))
    return made.eval()


def drawn(pictures: Any) -> np.ndarray:
    return np.stack([np.array(each) for each in pictures]).astype(int)


@pytest.mark.parametrize("mask", [False, True])
def test_whole_pictures_are_those_of_diffusers(
    pipe: QwenImagePipeline, official: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: bool
) -> None:
    from diffusers import QwenImageControlNetInpaintPipeline, QwenImageControlNetPipeline

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, *_, **__: self.mode())
    kind: Any = QwenImageControlNetInpaintPipeline if mask else QwenImageControlNetPipeline
    theirs = kind(**official.components, controlnet=network(tmp_path, mask))
    theirs.set_progress_bar_config(disable=True)
    picture = Image.effect_noise((48, 32), 90).convert("RGB")
    white = Image.new("L", (48, 32))
    white.paste(255, (16, 8, 40, 32))
    shown = {"control_image": picture, **({"control_mask": white} if mask else {})}
    name = load_controlnet(pipe, f"{tmp_path}:0.8")
    for prompt, cfg in ((PROMPTS[0], 3.0), (PROMPTS[1], 1.0)):
        expected = theirs(
            prompt,
            negative_prompt="grey",
            true_cfg_scale=cfg,
            controlnet_conditioning_scale=0.8,
            generator=torch.Generator().manual_seed(1),
            output_type="np",
            **shown,
            **SIZE,
        ).images[0]
        ours = pipe(prompt, "grey", cfg_scale=cfg, seed=1, control_inputs=shown, **SIZE)
        assert np.abs(np.array(ours) - expected * 255).max() <= 1
    plain = drawn([pipe(PROMPTS[0], "grey", cfg_scale=3.0, seed=1, **SIZE)])
    steered = drawn([pipe(PROMPTS[0], "grey", cfg_scale=3.0, seed=1, control_inputs=shown, **SIZE)])
    assert np.abs(plain - steered).max() > 20
    assert name == "controlnet"


def test_gradients_are_those_of_diffusers(pipe: QwenImagePipeline, official: Any, tmp_path: Path) -> None:
    theirs = network(tmp_path)
    load_controlnet(pipe, str(tmp_path))
    ours: Any = pipe.controlnet.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    latents, control = torch.randn(2, 2, 16, 4, 6, generator=generator)
    embeds = torch.randn(2, 5, 32, generator=generator)
    time = torch.tensor([700.0, 200.0])
    made = pipe.call_model_fn(latents=latents, timestep=time, prompt_embeds=embeds, controlnet_latents=control)
    made.square().mean().backward()
    tokens, shown = (official._pack_latents(each, 2, 16, 4, 6) for each in (latents, control))
    given = {"timestep": time / 1000, "encoder_hidden_states": embeds, "img_shapes": [[(1, 2, 3)]] * 2}
    samples = theirs(hidden_states=tokens, controlnet_cond=shown, return_dict=False, **given)
    expected = official.transformer(hidden_states=tokens, controlnet_block_samples=samples, return_dict=False, **given)[
        0
    ]
    expected.square().mean().backward()
    for (name, weight), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert (weight.grad is None) == (other.grad is None), name
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, other.grad, atol=1e-6, rtol=1e-5)
    assert ours.controlnet_x_embedder.weight.grad.abs().max() > 1e-4


def test_the_published_networks_are_known_by_their_shapes() -> None:
    from accelerate import init_empty_weights

    assert [kind.name for kind in UNION] == ["union", "union-inpaint"]
    for number, kind in enumerate(UNION):
        with init_empty_weights():
            config = kind.new_config(PUBLISHED["dit"])
            made = QwenImageControlNetModel(**config)
        shapes = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
        assert shapes["controlnet_x_embedder.weight"] == (3072, 64 + 4 * number)
        assert sum(name.startswith("controlnet_blocks.") for name in shapes) == 2 * 5
        found = [each.config_of(shapes, None, lambda _: False) for each in UNION]
        assert found[1 - number] is None
        assert found[number] == {**config, "patch_size": 2, "out_channels": 16}


def test_a_new_network_starts_from_the_transformer_and_is_trained_and_used(
    pipe: QwenImagePipeline, tiny_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a.png", "b.png"):
        Image.effect_noise((48, 32), 60).convert("RGB").save(data / name)
    (data / "metadata.csv").write_text("image,control_image,prompt\na.png,b.png,noise\n")
    options = {"model": str(tiny_folder), "dataset_base_path": data, "controlnet": ("union",), "device": "cpu"}
    options |= {"trainable_models": ("controlnet",), "learning_rate": 1e-2, "use_gradient_checkpointing": True}
    made = train(TrainOptions(**options, max_steps=2, output_path=tmp_path / "out"))
    weights = read_safetensors(made.checkpoint)[0]
    assert weights["controlnet_blocks.0.weight"].abs().max() > 0
    base = pipe.dit.state_dict()
    near = (weights["transformer_blocks.0.attn.to_q.weight"] - base["transformer_blocks.0.attn.to_q.weight"]).abs()
    assert near.max() < 0.1 < base["transformer_blocks.0.attn.to_q.weight"].abs().max(), "it started from there"
    load_controlnet(pipe, str(made.checkpoint))
    shown = {"control_image": Image.open(data / "b.png")}
    assert (
        np.array(pipe("noise", seed=1, **SIZE)) != np.array(pipe("noise", seed=1, control_inputs=shown, **SIZE))
    ).any()
