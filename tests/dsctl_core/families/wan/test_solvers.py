"""UniPC, the published solver: whole clips as diffusers' pipelines make them with their own scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from dsctl_core.errors import UsageError
from dsctl_core.families import load_family
from dsctl_core.scheduler import FlowMatchScheduler
from tests.dsctl_core.families.wan.conftest import FROM_IMAGE, SIZE, Pair, Pairs, clip, load
from tests.dsctl_core.families.wan.conftest import random as draw
from tests.dsctl_core.families.wan.test_parity import close, official_clip, our_clip, pictures_of


@contextmanager
def by_unipc(pair: Pair) -> Iterator[Pair]:
    """Have both sides take the steps of UniPC."""
    before = pair.official.scheduler
    pair.official.scheduler, pair.ours.solver = pair.unipc, "unipc"
    try:
        yield pair
    finally:
        pair.official.scheduler, pair.ours.solver = before, "euler"


@pytest.mark.parametrize(
    ("kind", "steps"), [("t2v", 2), ("t2v", 6), ("i2v", 2), ("flf2v", 2), ("i2v-a14b", 6), ("ti2v from an image", 6)]
)
def test_a_whole_clip_by_unipc(pairs: Pairs, kind: str, steps: int) -> None:
    name, _, image = kind.partition(" ")
    with by_unipc(pairs[name]) as pair:
        pictures = pictures_of(name) if name in FROM_IMAGE or image else {}
        cfg = [4.0, 3.0][: len(pair.ours.parts.denoisers)]
        noise = draw(1, *pair.ours.latent_space.latent_shape(32, 96, 9), seed=3)
        made = our_clip(pair, pictures, cfg if len(cfg) > 1 else cfg[0], noise, steps)
        close(made, official_clip(pair, pictures, cfg, noise, steps))
        assert torch.equal(pair.ours.scheduler.timesteps, pair.unipc.timesteps.float())
        torch.testing.assert_close(pair.ours.scheduler.sigmas, pair.unipc.sigmas[:-1], atol=1e-6, rtol=0)
    assert made.std() > 0.05


@pytest.mark.parametrize("above", [0, 1])
def test_a_step_of_unipc_exactly_at_the_boundary_is_that_of_high_noise(pairs: Pairs, above: int) -> None:
    with by_unipc(pairs["t2v-a14b"]) as pair:
        before, noise, calls = (pair.ours.parts, pair.official.config.boundary_ratio), draw(1, 16, 3, 4, 12), []
        hooks = [
            pair.ours.component(name).register_forward_pre_hook(lambda *_, name=name: calls.append(name))
            for name in ("dit", "dit_2")
        ]
        pair.unipc.set_timesteps(6)
        boundary = (int(pair.unipc.timesteps[3]) + above) / 1000
        index = {"boundary_ratio": boundary, "transformer_2": ["diffusers", "WanTransformer3DModel"]}
        try:
            pair.official.register_to_config(boundary_ratio=boundary)
            pair.ours.parts = pair.ours.family.parts(pair.ours.components, index)
            made = our_clip(pair, {}, [1.0, 1.0], noise, 6)
            close(made, official_clip(pair, {}, [1.0, 1.0], noise, 6))
        finally:
            pair.ours.parts = before[0]
            pair.official.register_to_config(boundary_ratio=before[1])
            for hook in hooks:
                hook.remove()
    assert calls == ["dit"] * (4 - above) + ["dit_2"] * (2 + above)


def test_the_published_solver_is_the_default_of_inference_and_training_keeps_its_levels(pairs: Pairs) -> None:
    assert load(pairs["t2v"].folder, only=["vae"]).solver == "unipc"
    family = load_family("wan")
    assert {(preset.schedule or family.schedule).solver for preset in family.presets} == {"unipc"}
    one, other = (FlowMatchScheduler(replace(family.schedule, solver=solver)) for solver in ("euler", "unipc"))
    for scheduler in (one, other):
        scheduler.set_timesteps(training=True)
    assert torch.equal(one.timesteps, other.timesteps)


@pytest.mark.parametrize("solver", ["euler", "unipc"])
@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
def test_a_strength_begins_exactly_at_its_level_and_a_perfect_model_leads_back(solver: Any, strength: float) -> None:
    """The velocity to one clip is the same everywhere on its line, so that every solver must arrive at it."""
    scheduler = FlowMatchScheduler(load_family("wan").presets[0].schedule or load_family("wan").schedule)
    scheduler.set_timesteps(5, strength, dynamic_shift_len=100, solver=solver)
    clean, noise = draw(1, 4, 2, 3, 3), draw(1, 4, 2, 3, 3, seed=1)
    first = scheduler.sigmas[0]
    assert float(first) == pytest.approx(3 * strength / (1 + 2 * strength), abs=2e-6)
    latents = scheduler.add_noise(clean, noise, 1000 * first)
    for timestep in scheduler.timesteps:
        level = scheduler.noise_level(timestep)
        torch.testing.assert_close(latents, (1 - level) * clean + level * noise, atol=2e-5, rtol=0)
        latents = scheduler.step(noise - clean, timestep, latents)
    torch.testing.assert_close(latents, clean, atol=2e-5, rtol=0)


def test_a_mask_keeps_the_clip_and_a_strength_below_the_levels_of_unipc_is_refused(pairs: Pairs) -> None:
    with by_unipc(pairs["t2v"]) as pair:
        frames, kept = clip(), Image.new("L", (96, 32), "black")
        arguments: dict[str, Any] = {"input_video": frames, "cfg_scale": 1, "seed": 1, "num_inference_steps": 3, **SIZE}
        made = [pair.ours(prompt, inpaint_mask=kept, **arguments) for prompt in ("a cat", "a dog")]
        free = pair.ours("a cat", denoising_strength=0.5, **arguments)
        assert made[0] == made[1] != free
        with pytest.raises(UsageError, match=r"the levels of unipc end at 0.001, above 0.0005"):
            pair.ours("a cat", denoising_strength=0.0005, **arguments)
