"""Z-Image's control networks beside diffusers' own pipeline, in float32 on a tiny random model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import ZImageControlNetModel, ZImageControlNetPipeline
from PIL import Image

from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError
from dsctl_core.families.controlnets import load_controlnet
from dsctl_core.families.z_image.controlnets import CONTROLNETS, config_of, new_config
from dsctl_core.families.z_image.family import FAMILY, PUBLISHED
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.options import TrainOptions
from tests.dsctl_core.families.z_image.conftest import PROMPTS, Pair
from tests.tiny_models import randomize

SIZE = {"height": 48, "width": 80}


@pytest.fixture(autouse=True)
def _as_it_was(pairs: dict[str, Pair]) -> Iterator[None]:
    """Take off the control networks of a test."""
    before = {name: pair.ours.units for name, pair in pairs.items()}
    yield
    for name, pair in pairs.items():
        for side in pair.ours.side_networks:
            del pair.ours._modules[side.name]
        pair.ours.units, pair.ours.side_networks = before[name], ()


@pytest.fixture
def base(pairs: dict[str, Pair]) -> Pair:
    pairs["base"].ours.scheduler.set_timesteps()
    return pairs["base"]


def network(folder: Path, **more: Any) -> Any:
    """Write a random network to `folder` and return it."""
    config = {**new_config(FAMILY.tiny["dit"]), "control_layers_places": [0, 1], **more}
    made = randomize(ZImageControlNetModel(**config), torch.Generator().manual_seed(4))
    made.save_pretrained(folder)
    return made.eval()


def noise(seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (4, 5, 3), generator=generator, dtype=torch.uint8).numpy()
    return Image.fromarray(small).resize((80, 48), Image.Resampling.BICUBIC)


def test_whole_pictures_are_those_of_diffusers(base: Pair, tmp_path: Path) -> None:
    made = network(tmp_path)
    theirs: Any = ZImageControlNetPipeline(**base.official.components, controlnet=made)
    theirs.set_progress_bar_config(disable=True)
    official = Pair(base.name, base.folder, base.ours, theirs)
    load_controlnet(base.ours, f"{tmp_path}:0.6")
    before = [name for name, _ in base.ours.controlnet.named_parameters()]
    for cfg in (1.0, 3.0):
        expected = official.official_images(
            PROMPTS[:1], 2, cfg, control_image=noise(), controlnet_conditioning_scale=0.6, **SIZE
        )
        ours = base.our_images(PROMPTS[:1], 2, cfg, control_image=noise(), **SIZE)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert (ours - base.our_images(PROMPTS[:1], 2, cfg, **SIZE)).abs().max() > 0.02
    assert [name for name, _ in base.ours.controlnet.named_parameters()] == before
    assert all(name.startswith("control_") for name in before), "the transformer's layers are not part of it"


def test_gradients_are_those_of_diffusers(base: Pair, tmp_path: Path) -> None:
    theirs = network(tmp_path)
    load_controlnet(base.ours, str(tmp_path))
    ours: Any = base.ours.controlnet.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    latents, control = torch.randn(2, 2, 16, 4, 6, generator=generator)
    embeds, time = torch.randn(2, 5, 16, generator=generator), torch.tensor([700.0, 200.0])
    made = base.ours.call_model_fn(latents=latents, timestep=time, prompt_embeds=embeds, controlnet_latents=control)
    made.square().mean().backward()
    transformer = base.official.transformer
    theirs.gradient_checkpointing = False  # which diffusers' class lacks
    theirs = ZImageControlNetModel.from_transformer(theirs, transformer)
    given = (list(latents.unsqueeze(2)), 1 - time / 1000, list(embeds))
    samples = theirs(*given, list(control.unsqueeze(2)))
    output = transformer(*given, controlnet_block_samples=samples, return_dict=False)[0]
    (-torch.stack(output)).square().mean().backward()
    grads = {name: weight.grad for name, weight in theirs.named_parameters() if name.startswith("control_")}
    assert grads.keys() == dict(ours.named_parameters()).keys()
    for name, weight in ours.named_parameters():
        assert (weight.grad is None) == (grads[name] is None), name
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, grads[name], atol=1e-6, rtol=1e-5)
    assert ours.control_all_x_embedder["2-1"].weight.grad.abs().max() > 1e-5


def test_a_new_network_changes_nothing_and_is_trained_alone(base: Pair, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        noise(ord(name[0])).save(tmp_path / name)
    (tmp_path / "metadata.csv").write_text("image,control_image,prompt\na.png,b.png,a red fox\n")
    options = {"model": str(base.folder), "dataset_base_path": tmp_path, "device": "cpu", "learning_rate": 1e-2}
    options |= {"lora_rank": 2, "use_gradient_checkpointing": True}
    plain = train(TrainOptions(**options, max_steps=1, output_path=tmp_path / "plain"))
    named = {"controlnet": ("union",), "trainable_models": ("controlnet",)}
    made = train(TrainOptions(**options, **named, max_steps=2, output_path=tmp_path / "out"))
    first = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0]
    assert f'"loss": {plain.final_loss}' in first
    weights = read_safetensors(tmp_path / "out" / "step-2.controlnet.safetensors")[0]
    assert all(name.startswith("control_") for name in weights)
    assert weights["control_layers.0.after_proj.weight"].abs().max() > 0
    layer = base.ours.dit.state_dict()["layers.0.attention.to_q.weight"]
    assert (weights["control_layers.0.attention.to_q.weight"] - layer).abs().max() < 0.1 < layer.abs().max()
    load_controlnet(base.ours, str(made.checkpoint))
    shown, without = (base.our_images(PROMPTS[:1], 2, 1.0, **SIZE, **more) for more in ({"control_image": noise()}, {}))
    assert (shown - without).abs().max() > 1e-4


def test_the_published_network_is_known_and_later_versions_are_refused(base: Pair, tmp_path: Path) -> None:
    config = new_config(PUBLISHED["dit"])
    with init_empty_weights():
        made = ZImageControlNetModel(**config)
    shapes = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
    assert config_of(shapes, None) == config
    assert config["control_layers_places"] == [0, 5, 10, 15, 20, 25]
    network(
        tmp_path,
        add_control_noise_refiner="control_noise_refiner",
        control_refiner_layers_places=[0],
        control_in_dim=33,
    )
    with pytest.raises(DsctlError, match="is no control network of Z-Image"):
        load_controlnet(base.ours, str(tmp_path))
    with pytest.raises(DsctlError, match="Z-Image-Omni has no control networks"):
        CONTROLNETS[0].new_config({**FAMILY.tiny["dit"], "siglip_feat_dim": 24})
