"""Z-Image's control networks beside diffusers' own pipeline, in float32 on a tiny random model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import ZImageControlNetInpaintPipeline, ZImageControlNetModel, ZImageControlNetPipeline
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, cat

from dsctl_core.commands.train import train
from dsctl_core.control.source import ControlWeights, load_network
from dsctl_core.errors import DsctlError
from dsctl_core.families.controlnets import load_controlnet
from dsctl_core.families.z_image.controlnets import (
    CONTROLNETS,
    FOR_REFINER,
    MAIN_BLOCKS,
    OWN_BLOCKS,
    PLACES,
    config_of,
    config_of_2,
    new_config,
    new_config_2,
)
from dsctl_core.families.z_image.family import FAMILY, PUBLISHED
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.options import TrainOptions
from dsctl_core.training.distributed import fsdp
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


def network(folder: Path, version: Any = new_config, **more: Any) -> Any:
    """Write a random network to `folder` and return it."""
    config = {**version(FAMILY.tiny["dit"]), "control_layers_places": [0, 1], **more}
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


@pytest.mark.parametrize(("kind", "use"), [("union", ""), ("union-2-inpaint", "#inpaint")])
def test_a_new_network_changes_nothing_and_is_trained_alone(base: Pair, tmp_path: Path, kind: str, use: str) -> None:
    for name in ("a.png", "b.png"):
        noise(ord(name[0])).save(tmp_path / name)
    left_half().save(tmp_path / "c.png")
    (tmp_path / "metadata.csv").write_text("image,control_image,control_mask,prompt\na.png,b.png,c.png,a red fox\n")
    options = {"model": str(base.folder), "dataset_base_path": tmp_path, "device": "cpu", "learning_rate": 1e-2}
    options |= {"lora_rank": 2, "use_gradient_checkpointing": True}
    plain = train(TrainOptions(**options, max_steps=1, output_path=tmp_path / "plain"))
    named = {"controlnet": (kind,), "trainable_models": ("controlnet",), "max_steps": 2}
    made = train(TrainOptions(**options, **named, output_path=tmp_path / "out"))
    if use:  # what is cached are all three parts
        whole = train(TrainOptions(**options, **named, cache=False, output_path=tmp_path / "whole"))
        assert made.final_loss == whole.final_loss
    first = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0]
    assert f'"loss": {plain.final_loss}' in first
    weights = read_safetensors(tmp_path / "out" / "step-2.controlnet.safetensors")[0]
    assert all(name.startswith("control_") for name in weights)
    assert weights["control_layers.0.after_proj.weight"].abs().max() > 0
    layer = base.ours.dit.state_dict()["layers.0.attention.to_q.weight"]
    assert (weights["control_layers.0.attention.to_q.weight"] - layer).abs().max() < 0.1 < layer.abs().max()
    load_controlnet(base.ours, f"{made.checkpoint}{use}")
    control = {"control_image": noise(), **({"control_mask": left_half(), "input_image": noise(1)} if use else {})}
    shown, without = (base.our_images(PROMPTS[:1], 2, 1.0, **SIZE, **more) for more in (control, {}))
    assert (shown - without).abs().max() > 1e-4


def test_the_published_network_is_known_and_later_versions_are_refused(base: Pair, tmp_path: Path) -> None:
    config = new_config(PUBLISHED["dit"])
    with init_empty_weights():
        made = ZImageControlNetModel(**config)
    shapes = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
    assert config_of(shapes, None, lambda _: False) == config
    assert config["control_layers_places"] == [0, 5, 10, 15, 20, 25]
    with pytest.raises(DsctlError, match="Z-Image-Omni has no control networks"):
        CONTROLNETS[0].new_config({**FAMILY.tiny["dit"], "siglip_feat_dim": 24})


def left_half() -> Image.Image:
    mask = Image.new("L", (80, 48))
    mask.paste(255, (0, 0, 36, 48))
    return mask


@pytest.mark.parametrize("painted", [False, True])
def test_whole_pictures_of_version_2_are_those_of_diffusers(base: Pair, tmp_path: Path, painted: bool) -> None:
    made = network(tmp_path, new_config_2)
    for layer in made.control_noise_refiner:  # what diffusers does not add to the transformer is zero
        layer.after_proj.weight.data.zero_()
        layer.after_proj.bias.data.zero_()
    made.save_pretrained(tmp_path)
    theirs: Any = (ZImageControlNetInpaintPipeline if painted else ZImageControlNetPipeline)(
        **base.official.components, controlnet=made
    )
    theirs.set_progress_bar_config(disable=True)
    official = Pair(base.name, base.folder, base.ours, theirs)
    load_controlnet(base.ours, f"{tmp_path}{'#inpaint' if painted else ''}:0.6")
    more: dict[str, Any] = {"control_image": noise(), **SIZE}
    mask = left_half()
    hole = {"image": noise(1), "mask_image": mask} if painted else {}
    expected = official.official_images(PROMPTS[:1], 2, 3.0, controlnet_conditioning_scale=0.6, **more, **hole)
    more |= {"input_image": noise(1), "control_mask": mask} if painted else {}
    ours = base.our_images(PROMPTS[:1], 2, 3.0, **more)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    if painted:
        more["input_image"] = noise(2)
        assert (ours - base.our_images(PROMPTS[:1], 2, 3.0, **more)).abs().max() > 1e-3, "the input image counts"


def as_the_authors(dit: Any, net: Any, latents: Tensor, time: Tensor, embeds: Tensor, control: Tensor) -> Tensor:
    """Return the velocity (1, C, 1, h, w) of one network of both, as VideoX-Fun has it; at scale 0.6.

    Numbers of image tokens and of prompt tokens are multiples of 32, so that there is no padding.
    """
    x, prompt, sizes, at, prompt_at, _, _ = dit.patchify_and_embed([latents], [embeds], 2, 1)
    adaln = dit.t_embedder(time * dit.t_scale)
    image, prompt = dit.all_x_embedder["2-1"](x[0])[None], dit.cap_embedder(prompt[0])[None]
    rope, prompt_rope = dit.rope_embedder(at[0])[None], dit.rope_embedder(prompt_at[0])[None]
    seen = net.control_all_x_embedder["2-1"](net.patchify([control], 2, 1)[0])[None]
    for layer in net.control_layers if net.control_noise_refiner is None else net.control_noise_refiner:
        seen = layer(seen, image, None, rope, adaln)
    *hints, seen = seen.unbind()
    for layer, hint in zip(dit.noise_refiner, hints, strict=False):
        image = layer(image, None, rope, adaln) + 0.6 * hint
    for layer in dit.context_refiner:
        prompt = layer(prompt, None, prompt_rope)
    both, ropes, seen = cat([image, prompt], 1), cat([rope, prompt_rope], 1), cat([seen, prompt], 1)
    for layer in net.control_layers:
        seen = layer(seen, both, None, ropes, adaln)
    hints = seen.unbind()
    for number, layer in enumerate(dit.layers):
        both = layer(both, None, ropes, adaln)
        if number in net.control_layers_places:
            both = both + 0.6 * hints[net.control_layers_places.index(number)]
    return -torch.stack(dit.unpatchify(list(dit.all_final_layer["2-1"](both, c=adaln)), sizes, 2, 1, None))


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("steering", [OWN_BLOCKS, MAIN_BLOCKS])
def test_what_steers_the_refiner_reaches_the_transformer_as_with_the_authors(
    base: Pair, tmp_path: Path, steering: str, recomputed: bool
) -> None:
    theirs = network(tmp_path, new_config_2, add_control_noise_refiner=steering)
    load_controlnet(base.ours, f"{tmp_path}:0.6")
    ours: Any = base.ours.controlnet.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    latents, control = torch.randn(1, 16, 8, 16, generator=generator), torch.randn(1, 33, 8, 16, generator=generator)
    embeds, time = torch.randn(1, 32, 16, generator=generator), torch.tensor([700.0])
    given = {"latents": latents, "timestep": time, "prompt_embeds": embeds, "controlnet_latents": control}
    made = base.ours.call_model_fn(**given, use_gradient_checkpointing=recomputed)
    dit = base.official.transformer
    expected = as_the_authors(dit, theirs, latents[0][:, None], 1 - time / 1000, embeds[0], control[0][:, None])
    torch.testing.assert_close(made, expected.squeeze(2), atol=1e-5, rtol=0)
    loss, other = made.square().mean(), expected.square().mean()
    torch.testing.assert_close(loss, other, atol=1e-6, rtol=0)
    loss.backward()
    other.backward()
    grads = {name: weight.grad for name, weight in theirs.named_parameters() if name.startswith("control_")}
    assert grads.keys() == dict(ours.named_parameters()).keys()
    for name, weight in ours.named_parameters():
        if grads[name] is not None:
            torch.testing.assert_close(weight.grad, grads[name], atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        plain = ZImageControlNetModel.from_transformer(theirs, dit)(
            [latents[0][:, None]], 1 - time / 1000, [embeds[0]], [control[0][:, None]], 0.6
        )
        alone = dit(
            [latents[0][:, None]], 1 - time / 1000, [embeds[0]], controlnet_block_samples=plain, return_dict=False
        )
    assert (made + alone[0][0].squeeze(1)).abs().max() > 1e-3, "diffusers' pipeline leaves the refiner as it was"


@pytest.mark.parametrize(("blocks", "steering"), [(15, OWN_BLOCKS), (15, MAIN_BLOCKS), (3, OWN_BLOCKS)])
def test_published_files_of_version_2_are_told_apart(tmp_path: Path, blocks: int, steering: str) -> None:
    places = {"control_layers_places": list(PLACES[blocks])}
    with init_empty_weights():
        made = ZImageControlNetModel(**new_config_2(PUBLISHED["dit"]) | places)
    shapes = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
    expected = {**new_config_2(PUBLISHED["dit"]), **places, "add_control_noise_refiner": steering}
    assert config_of_2(shapes, None, lambda name: steering == MAIN_BLOCKS) == expected
    assert config_of(shapes, None, lambda name: False) is None
    # A file without config.json, as published: that of 2.0 has blocks for the refiner that were never trained.
    kind = next(each for each in CONTROLNETS if each.name == "union-2")
    state = dict(network(tmp_path / "folder", new_config_2, **places).state_dict())
    state[FOR_REFINER] = state[FOR_REFINER] * (steering == OWN_BLOCKS)
    save_file(state, tmp_path / "file.safetensors")
    loaded: Any = load_network(kind, ControlWeights.at([tmp_path / "file.safetensors"]), "file")
    assert loaded.add_control_noise_refiner == steering
    assert (loaded.control_noise_refiner is None) == (steering == MAIN_BLOCKS)


def test_what_a_network_of_version_2_lacks_is_said(base: Pair, tmp_path: Path) -> None:
    network(tmp_path, new_config_2)
    load_controlnet(base.ours, f"{tmp_path}#inpaint")
    for given, problem in {
        ("control_image",): "control_image is given without control_mask",
        ("control_mask", "input_image"): "control_mask is given without control_image",
        ("control_image", "control_mask"): "control_mask is given without input_image",
    }.items():
        with pytest.raises(DsctlError, match=problem):
            base.our_images(PROMPTS[:1], 1, 1.0, **SIZE, **dict.fromkeys(given, noise()))
    with pytest.raises(DsctlError, match="has no modes, but #edges is given"):
        load_controlnet(base.ours, f"{tmp_path}#edges")


def test_a_network_that_runs_layers_of_the_denoiser_is_not_divided(
    base: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network(tmp_path)
    load_controlnet(base.ours, str(tmp_path))
    monkeypatch.setattr(fsdp, "divides", lambda _: True)
    module: Any = SimpleNamespace(pipe=base.ours, modules=lambda: iter(()))
    with pytest.raises(DsctlError, match="FSDP2 cannot divide controlnet, which runs layers of the denoiser"):
        fsdp.shard(SimpleNamespace(), module)
