"""Noise levels that training draws: from each sample's seed alone, as often as asked for, within the boundaries."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import pytest
import torch

from dsctl_core.errors import UsageError
from dsctl_core.families import families, load_family
from dsctl_core.family import Schedule
from dsctl_core.losses.timesteps import Objective
from dsctl_core.scheduler import FlowMatchScheduler

DRAWS = 4000


def scheduler(objective: Objective | None = None) -> FlowMatchScheduler:
    made = FlowMatchScheduler(Schedule())
    (objective or Objective()).apply(made, load_family("qwen-image"))
    made.set_timesteps(1000, training=True)
    return made


def draws(count: int = DRAWS, **settings: Any) -> torch.Tensor:
    objective = Objective(**settings)
    return objective.draw(scheduler(objective), count, list(range(count)))


def before_the_shift(timesteps: torch.Tensor, shift: float) -> torch.Tensor:
    sigma = timesteps.double() / 1000
    return sigma / (shift - (shift - 1) * sigma)


def test_every_level_of_the_table_is_drawn_equally_often_unless_told_otherwise():
    levels = before_the_shift(draws(), math.exp(0.8))
    assert float(levels.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(levels.var()) == pytest.approx(1 / 12, abs=0.005)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.7), (-1.0, 1.5)])
def test_logit_normal_is_normal_in_the_logit(mean: float, std: float):
    levels = before_the_shift(draws(sampling="logit_normal", logit_mean=mean, logit_std=std, shift=1), 1)
    logits = torch.log(levels / (1 - levels))
    assert float(logits.median()) == pytest.approx(mean, abs=0.06)
    spread = (logits.quantile(0.8413) - logits.quantile(0.1587)) / 2
    assert float(spread) == pytest.approx(std, abs=0.08)


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
@pytest.mark.parametrize("seed", range(20))
def test_a_sample_s_level_depends_on_its_own_seed_alone(sampling: Any, seed: int):
    objective, table = Objective(sampling=sampling), scheduler()
    alone = objective.draw(table, 1, [seed])
    torch.manual_seed(seed)
    assert objective.draw(table, 3, [seed + 7, seed, seed + 1])[1] == alone[0]
    torch.manual_seed(seed + 1)
    assert objective.draw(table, 2, [seed, seed]).tolist() == [alone.item()] * 2


def test_without_a_seed_torch_s_generator_is_drawn_from():
    torch.manual_seed(0)
    first = Objective().draw(scheduler(), 20, None)
    assert not torch.equal(first, Objective().draw(scheduler(), 20, None))
    torch.manual_seed(0)
    assert torch.equal(first, Objective().draw(scheduler(), 20, None))


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
@pytest.mark.parametrize(("least", "most"), [(0, 0.358), (0.358, 1), (0.2, 0.21), (0.999, 1), (0, 0.001)])
def test_only_levels_between_the_boundaries_are_drawn(sampling: Any, least: float, most: float):
    found = before_the_shift(draws(300, sampling=sampling, min_boundary=least, max_boundary=most), math.exp(0.8))
    places = 1 - found
    assert least - 1e-6 <= float(places.min())
    assert float(places.max()) <= most + 1e-6


def test_the_boundary_of_a_high_noise_expert_is_where_its_makers_put_it():
    # With a shift of 5 the share 0.358 of the schedule is the timesteps from 900 on.
    found = draws(500, min_boundary=0, max_boundary=0.358, shift=5)
    assert 899 < float(found.min()) < 910


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
@pytest.mark.parametrize("shift", [1.0, 5.0, 12.0])
def test_a_range_of_sigmas_is_the_same_under_every_shift(sampling: Any, shift: float):
    made = draws(500, sampling=sampling, shift=shift, sigmas=(0.5, 0.875))
    assert 500 <= made.min() < 550
    assert 800 < made.max() < 875
    positions = [Objective(shift=each, sigmas=(0.5, 0.875)) for each in (1.0, 5.0)]
    assert positions[0].places(scheduler(positions[0])) != positions[1].places(scheduler(positions[1]))


def test_two_ranges_of_sigmas_share_the_table_between_them():
    table = scheduler()
    high, low = (Objective(sigmas=each).places(table) for each in ((0.875, 1.0), (0.0, 0.875)))
    assert [*high, *low] == list(range(1000))
    assert len(high) > 0 < len(low)
    assert float(table.timesteps[high[-1]]) >= 875 > float(table.timesteps[low[0]])
    assert Objective(sigmas=(0.875, 1.0), min_boundary=0.9).places(table) == range(900, len(high))
    with pytest.raises(UsageError, match="the sigmas 0.875 and 1"):
        Objective(sigmas=(0.875, 1.0), min_boundary=0.9).draw(table, 1, 0)


def test_without_a_range_draws_are_those_of_a_range_that_has_all_levels():
    assert torch.equal(draws(50), draws(50, sigmas=(0.0, 1.0)))


def test_within_boundaries_logit_normal_keeps_its_shape():
    found = before_the_shift(draws(sampling="logit_normal", shift=1, min_boundary=0.5, max_boundary=1), 1)
    normal = NormalDist()
    quarter = normal.inv_cdf(0.125)  # the lower half's own lower quarter
    assert float(found.quantile(0.25)) == pytest.approx(1 / (1 + math.exp(-quarter)), abs=0.01)


@pytest.mark.parametrize(("least", "most"), [(0.5, 0.5), (0.9, 0.1), (0.5, 0.5004)])
def test_boundaries_with_nothing_between_them_are_refused(least: float, most: float):
    with pytest.raises(UsageError, match="no level lies between"):
        draws(1, min_boundary=least, max_boundary=most)


def test_the_shift_is_that_of_the_paper_and_one_is_none():
    family, none, three = (scheduler(Objective(shift=shift)).sigmas for shift in (None, 1, 3))
    grid = (torch.arange(1000, 0, -1) - 0.5) / 1000
    torch.testing.assert_close(none, grid, atol=1e-6, rtol=0)
    torch.testing.assert_close(three, 3 * grid / (1 + 2 * grid), atol=1e-6, rtol=0)
    torch.testing.assert_close(family, math.exp(0.8) * grid / (1 + (math.exp(0.8) - 1) * grid), atol=1e-6, rtol=0)


def test_a_shift_of_training_leaves_inference_as_it_is():
    usual, shifted = FlowMatchScheduler(Schedule()), scheduler(Objective(shift=7))
    for tokens in (None, 256, 4096):
        usual.set_timesteps(20, dynamic_shift_len=tokens)
        shifted.set_timesteps(20, dynamic_shift_len=tokens)
        assert torch.equal(usual.sigmas, shifted.sigmas)
    shifted.set_timesteps(1000, training=True)
    assert torch.equal(shifted.sigmas, scheduler(Objective(shift=7)).sigmas)


def test_no_weighting_counts_all_levels_alike_and_the_bell_those_in_the_middle_more():
    table = scheduler()
    assert torch.equal(Objective(weighting="none").weight(table, table.timesteps), torch.ones(1000))
    bell = Objective().weight(table, table.timesteps)
    assert torch.equal(bell, table.training_weight(table.timesteps))
    assert float(bell.mean()) == pytest.approx(1, abs=1e-5)
    assert float(bell[(table.timesteps - 500).abs().argmin()]) > 1 > float(bell[0])


def of_diffsynth(family: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The levels (sigmas) and weights of DiffSynth-Studio's training, written out from its published formulas."""
    n = 1000
    t = (
        1 - torch.arange(n, dtype=torch.float64) / n
    )  # sigma_min is 1 / n and counts, or 0 and does not: the same levels
    sigma = math.exp(0.8) / (math.exp(0.8) + (1 / t - 1))
    if family == "qwen-image":
        sigma = 1 - (1 - sigma) * (1 - 0.02) / (1 - sigma[-1])
    x = 1000 * sigma
    y = torch.exp(-2 * ((x - 500) / 1000) ** 2)
    y = y - y.min()
    return sigma, y * 1000 / y.sum()


@pytest.mark.parametrize("family", ["qwen-image", "flux2"])
def test_diffsynth_s_own_levels_and_weights(family: str):
    levels, weights = of_diffsynth(family)
    made = FlowMatchScheduler(load_family(family).schedule)
    objective = Objective(sampling="diffsynth")
    objective.apply(made, load_family(family))
    made.set_timesteps(1000, training=True)
    torch.testing.assert_close(made.sigmas.double(), levels, atol=5e-7, rtol=0)
    assert float(made.sigmas[0]) == 1.0
    assert float(made.sigmas[-1]) == pytest.approx(0.02 if family == "qwen-image" else 0.00222, abs=1e-5)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    found = objective.weight(made, made.timesteps[order])
    torch.testing.assert_close(found.double(), weights[order], atol=2e-5, rtol=1e-4)
    assert found.min() == 0
    drawn = objective.draw(made, 20000, list(range(20000)))
    places = (made.timesteps - drawn[:, None]).abs().argmin(dim=1)
    assert torch.equal(made.timesteps[places], drawn)
    counts = torch.bincount(places // 100, minlength=10) / 2000
    assert float((counts - 1).abs().max()) < 0.1
    assert objective.places(made) == range(1000)
    assert Objective(sampling="diffsynth", min_boundary=0.1239, max_boundary=0.8757).places(made) == range(123, 875)
    torch.testing.assert_close(
        Objective(sampling="diffsynth").weight(made, torch.tensor([500.4])),
        found[(order == (made.timesteps - 500.4).abs().argmin())],
    )


def test_levels_of_diffsynth_leave_inference_as_it_is_and_are_refused_where_it_has_none():
    usual, made = (FlowMatchScheduler(load_family("qwen-image").schedule) for _ in range(2))
    Objective(sampling="diffsynth").apply(made, load_family("qwen-image"))
    for each in (usual, made):
        each.set_timesteps(20, dynamic_shift_len=256)
    assert torch.equal(usual.sigmas, made.sigmas)
    without = replace(load_family("flux2"), diffsynth_table=None)
    with pytest.raises(UsageError, match=r"FLUX.2 is not trained by DiffSynth"):
        Objective(sampling="diffsynth").apply(made, without)
    assert any(family.diffsynth_table for family in families().values())
