"""FLUX.1's control networks beside diffusers' own pipeline, in float32 on a tiny random model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import FluxControlNetModel, FluxControlNetPipeline
from diffusers.pipelines.flux import pipeline_flux_controlnet
from PIL import Image

from dsctl_core.commands.train import train
from dsctl_core.control import ControlUse
from dsctl_core.errors import DsctlError
from dsctl_core.families.controlnets import load_controlnet
from dsctl_core.families.flux1.controlnets import CONTROLNETS
from dsctl_core.families.flux1.family import FAMILY, PUBLISHED
from dsctl_core.options import TrainOptions
from tests.dsctl_core.families.flux1.conftest import HEIGHT, PROMPTS, WIDTH, Pair, close, noisy, write_rows
from tests.tiny_models import randomize

PLAIN, UNION = CONTROLNETS
# diffusers' class uses a name that diffusers deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*FluxPosEmbed.*is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def _as_it_was(pairs: dict[str, Pair]) -> Iterator[None]:
    """Take off the control networks of a test."""
    before = {kind: pair.ours.units for kind, pair in pairs.items()}
    yield
    for kind, pair in pairs.items():
        for side in pair.ours.side_networks:
            del pair.ours._modules[side.name]
        pair.ours.units, pair.ours.side_networks = before[kind], ()


def network(folder: Path, union: bool, seed: int = 4, **sizes: Any) -> Any:
    """Write a random network to `folder` and return it."""
    kind = UNION if union else PLAIN
    config = {**kind.new_config(FAMILY.tiny["dit"]), "num_layers": 1, "num_single_layers": 1, **sizes}
    made = randomize(FluxControlNetModel(**config), torch.Generator().manual_seed(seed))
    made.save_pretrained(folder)
    return made.eval()


@pytest.mark.parametrize("union", [False, True])
def test_whole_pictures_are_those_of_diffusers(
    dev: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, union: bool
) -> None:
    monkeypatch.setattr(pipeline_flux_controlnet, "retrieve_latents", lambda output, **_: output.latent_dist.mode())
    made = network(tmp_path, union, guidance_embeds=not union)
    theirs: Any = FluxControlNetPipeline(**dev.official.components, controlnet=made)
    theirs.set_progress_bar_config(disable=True)
    official = Pair(dev.kind, dev.folder, dev.ours, theirs)
    picture, mode = noisy((WIDTH, HEIGHT)), {"control_mode": 2} if union else {}
    load_controlnet(dev.ours, f"{tmp_path}{'#depth' if union else ''}:0.6")
    for cfg in (1.0, 2.5):
        expected = official.official_images(
            PROMPTS[:1], cfg, control_image=picture, controlnet_conditioning_scale=0.6, **mode
        )
        ours = dev.our_images(PROMPTS[:1], cfg, control_image=picture)
        close(ours, expected)
    assert (ours - dev.our_images(PROMPTS[:1], cfg)).abs().max() > 0.05


def test_gradients_are_those_of_diffusers(dev: Pair, tmp_path: Path) -> None:
    theirs = network(tmp_path, union=True)
    load_controlnet(dev.ours, f"{tmp_path}#tile")
    ours: Any = dev.ours.controlnet.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    latents, control = torch.randn(2, 2, 16, 4, 6, generator=generator)
    embeds, pooled = torch.randn(2, 5, 24, generator=generator), torch.randn(2, 16, generator=generator)
    time = torch.tensor([700.0, 200.0])
    given = {"prompt_embeds": embeds, "pooled_embeds": pooled, "embedded_guidance": 2.0}
    made = dev.ours.call_model_fn(latents=latents, timestep=time, controlnet_latents=control, **given)
    made.square().mean().backward()
    tokens, shown = (dev.official._pack_latents(each, 2, 16, 4, 6) for each in (latents, control))
    ids = dev.official._prepare_latent_image_ids(2, 2, 3, "cpu", torch.float32)
    shared = {
        "timestep": time / 1000,
        "guidance": torch.full((2,), 2.0),
        "pooled_projections": pooled,
        "encoder_hidden_states": embeds,
        "txt_ids": torch.zeros(5, 3),
        "img_ids": ids,
        "return_dict": False,
    }
    mode = torch.full((2, 1), 1)
    double, single = theirs(hidden_states=tokens, controlnet_cond=shown, controlnet_mode=mode, **shared)
    residuals = {"controlnet_block_samples": double, "controlnet_single_block_samples": single}
    expected = dev.official.transformer(hidden_states=tokens, **residuals, **shared)[0]
    expected.square().mean().backward()
    for (name, weight), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert (weight.grad is None) == (other.grad is None), name
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, other.grad, atol=1e-6, rtol=1e-5)
    assert ours.controlnet_mode_embedder.weight.grad[1].abs().max() > 1e-5


def test_several_are_added_up_and_references_stay_as_they_are(kontext: Pair, tmp_path: Path) -> None:
    network(tmp_path / "one", union=False)
    network(tmp_path / "other", union=True, seed=5)
    first = load_controlnet(kontext.ours, str(tmp_path / "one"))
    second = load_controlnet(kontext.ours, f"{tmp_path / 'other'}#canny")
    assert (first, second) == ("controlnet", "controlnet_2")
    shown = {"control_image": noisy((WIDTH, HEIGHT)), "control_image_2": noisy((WIDTH, HEIGHT), 3)}

    def made(**scales: float) -> torch.Tensor:
        controls = {name: ControlUse(scale, mode=0) for name, scale in scales.items()}
        edit = [noisy((48, 48))]
        return kontext.our_images(PROMPTS[:1], 1.0, edit_image=edit, controls=controls, **shown)

    plain, one, both = (made(controlnet=a, controlnet_2=b) for a, b in ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)))
    assert (one - plain).abs().max() > 0.01
    assert (both - one).abs().max() > 0.01


def test_the_published_networks_are_known_by_their_shapes() -> None:
    assert [kind.name for kind in CONTROLNETS] == ["residual", "union"]
    for kind in CONTROLNETS:
        config = {**kind.new_config(PUBLISHED["dit"]), "num_layers": 5}
        with init_empty_weights():
            made = FluxControlNetModel(**config)
        shapes = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
        assert [each.config_of(shapes, None, lambda _: False) for each in CONTROLNETS] == [
            config if each is kind else None for each in CONTROLNETS
        ]


def test_a_mode_is_named_where_there_are_some(dev: Pair, tmp_path: Path) -> None:
    network(tmp_path / "plain", union=False)
    network(tmp_path / "union", union=True, num_mode=4)
    for text, problem in {
        f"{tmp_path / 'plain'}#canny": "has no modes, but #canny is given",
        str(tmp_path / "union"): "takes several kinds of control pictures, and none is named",
        f"{tmp_path / 'union'}#cany": "has no mode 'cany': it has 4 modes",
        f"{tmp_path / 'union'}#gray": "has no mode 'gray': it has 4 modes",
        f"{tmp_path / 'union'}#4": "has no mode '4'",
    }.items():
        with pytest.raises(DsctlError, match=problem):
            load_controlnet(dev.ours, text)
    assert not dev.ours.side_networks


def test_a_new_network_changes_nothing_and_is_trained(dev: Pair, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        noisy((48, 32), seed=ord(name[0])).save(tmp_path / name)
    data = write_rows(tmp_path, {"image": "a.png", "control_image": "b.png", "prompt": "a red fox"})
    options = {"model": str(dev.folder), "dataset_base_path": data, "device": "cpu", "max_steps": 2, "seed": 1}
    options |= {"dataset_metadata_path": data / "metadata.jsonl", "lora_rank": 2, "learning_rate": 1e-2}
    plain = train(TrainOptions(**{**options, "max_steps": 1}, output_path=tmp_path / "plain"))
    named = {"controlnet": ("union#gray",), "trainable_models": ("controlnet",)}
    train(TrainOptions(**options, **named, output_path=tmp_path / "out"))
    first = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0]
    assert f'"loss": {plain.final_loss}' in first
    load_controlnet(dev.ours, f"{tmp_path / 'out' / 'step-2.controlnet.safetensors'}#gray")
    picture = Image.open(tmp_path / "b.png").resize((WIDTH, HEIGHT))
    shown, without = (dev.our_images(PROMPTS[:1], 1.0, **more) for more in ({"control_image": picture}, {}))
    assert (shown - without).abs().max() > 1e-4
