"""The schedule: beside diffusers' own, and the properties that training and sampling rest on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dsctl_core.errors import UsageError
from dsctl_core.family import Schedule
from dsctl_core.scheduler import FlowMatchScheduler

QWEN = Schedule(base_shift=0.5, max_shift=0.9, base_image_seq_len=256, max_image_seq_len=8192, shift_terminal=0.02)
STEPS = (2, 3, 20, 50)
SIZES = ((96, 96), (1328, 1328))


def tokens(height: int, width: int) -> int:
    return height * width // 256


@pytest.fixture
def scheduler() -> FlowMatchScheduler:
    return FlowMatchScheduler(QWEN)


@pytest.fixture
def training(scheduler: FlowMatchScheduler) -> FlowMatchScheduler:
    scheduler.set_timesteps(training=True)
    return scheduler


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("terminal", [0.02, None])
def test_sigmas_equal_those_of_diffusers(steps: int, size: tuple[int, int], terminal: float | None) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift

    official = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=terminal)
    mu = calculate_shift(tokens(*size), 256, 8192, 0.5, 0.9)
    official.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    ours = FlowMatchScheduler(Schedule(0.5, 0.9, 256, 8192, terminal))
    ours.set_timesteps(steps, dynamic_shift_len=tokens(*size))
    torch.testing.assert_close(ours.sigmas, official.sigmas[:-1], atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.timesteps, official.timesteps, atol=1e-3, rtol=0)


def test_one_step_starts_at_pure_noise_and_ends_at_the_picture(scheduler: FlowMatchScheduler) -> None:
    scheduler.set_timesteps(1, dynamic_shift_len=36)
    assert scheduler.sigmas.tolist() == [1.0]
    x0, noise = torch.randn(2, 2, 4, 4, 4)
    torch.testing.assert_close(scheduler.step(noise - x0, scheduler.timesteps[0], noise), x0)


@pytest.mark.parametrize("steps", [2, 7, 100])
@pytest.mark.parametrize("strength", [1.0, 0.6, 0.3])
def test_sigmas_fall_from_the_strength_to_the_terminal(
    scheduler: FlowMatchScheduler, steps: int, strength: float
) -> None:
    scheduler.set_timesteps(steps, strength, dynamic_shift_len=36)
    first, last = scheduler.sigmas[0].item(), scheduler.sigmas[-1].item()
    assert (scheduler.sigmas.diff() < 0).all()
    assert last == pytest.approx(0.02, abs=1e-6)
    scheduler.set_timesteps(1, strength, dynamic_shift_len=36)
    assert first == pytest.approx(scheduler.sigmas[0].item(), abs=1e-6), "the strength depends on the number of steps"


def test_a_strength_below_the_terminal_is_not_stretched_upwards(scheduler: FlowMatchScheduler) -> None:
    scheduler.set_timesteps(4, 0.005)
    assert scheduler.sigmas.max() < 0.02


def test_more_image_tokens_mean_more_noise(scheduler: FlowMatchScheduler) -> None:
    scheduler.set_timesteps(20, dynamic_shift_len=256)
    small = scheduler.sigmas
    scheduler.set_timesteps(20, dynamic_shift_len=6889)
    assert (scheduler.sigmas[1:-1] > small[1:-1]).all()


@pytest.mark.parametrize("steps", [1, 2, 5, 30])
def test_the_true_velocity_leads_back_to_the_picture(scheduler: FlowMatchScheduler, steps: int) -> None:
    x0, noise = torch.randn(2, 3, 16, 4, 6)
    scheduler.set_timesteps(steps, dynamic_shift_len=36)
    x = noise
    for timestep in scheduler.timesteps:
        x = scheduler.step(noise - x0, timestep, x)
    torch.testing.assert_close(x, x0, atol=1e-5, rtol=0)


def test_to_final_takes_the_whole_way_at_once(scheduler: FlowMatchScheduler) -> None:
    x0, noise = torch.randn(2, 2, 16, 4, 6)
    scheduler.set_timesteps(5, dynamic_shift_len=36)
    at = scheduler.timesteps[2]
    x = scheduler.add_noise(x0, noise, at)
    torch.testing.assert_close(scheduler.step(noise - x0, at, x, to_final=True), x0, atol=1e-5, rtol=0)


def test_steps_are_computed_in_float32_whatever_the_dtype(scheduler: FlowMatchScheduler) -> None:
    scheduler.set_timesteps(30, dynamic_shift_len=36)
    x, velocity = torch.randn(2, 1, 16, 4, 4).bfloat16()
    expected = scheduler.step(velocity.float(), scheduler.timesteps[3], x.float())
    actual = scheduler.step(velocity, scheduler.timesteps[3], x)
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual, expected.bfloat16())


def test_noise_is_blended_sample_by_sample(scheduler: FlowMatchScheduler) -> None:
    x0, noise = torch.randn(2, 3, 16, 4, 4)
    blended = scheduler.add_noise(x0, noise, torch.tensor([0.0, 250.0, 1000.0]))
    expected = torch.stack([x0[0], 0.75 * x0[1] + 0.25 * noise[1], noise[2]])
    torch.testing.assert_close(blended, expected)
    assert torch.equal(scheduler.add_noise(x0, noise, 250.0)[1], blended[1])


def test_any_two_timesteps_a_float32_can_tell_apart_give_different_noise(scheduler: FlowMatchScheduler) -> None:
    x0, noise = torch.zeros(1000, 1), torch.ones(1000, 1)
    levels = scheduler.add_noise(x0, noise, torch.linspace(0, 1000, 1000)).flatten()
    assert len(levels.unique()) == 1000


def test_the_target_is_the_velocity(scheduler: FlowMatchScheduler) -> None:
    x0, noise = torch.randn(2, 2, 16, 4, 4)
    low, high = (scheduler.add_noise(x0, noise, t) for t in (400.0, 500.0))
    torch.testing.assert_close(
        scheduler.training_target(x0, noise, torch.tensor(450.0)), (high - low) / 0.1, atol=1e-4, rtol=0
    )


def test_training_levels_are_the_mid_points_of_equal_bins_shifted(training: FlowMatchScheduler) -> None:
    uniform = (np.arange(1000, 0, -1) - 0.5) / 1000
    shifted = math.exp(0.8) * uniform / (1 + (math.exp(0.8) - 1) * uniform)
    np.testing.assert_allclose(training.sigmas.numpy(), shifted, atol=1e-6)
    assert training.training
    assert len(training.timesteps) == 1000


def test_no_training_level_is_a_wasted_step(training: FlowMatchScheduler) -> None:
    weights = training.training_weight(training.timesteps)
    assert ((training.sigmas > 0) & (training.sigmas < 1)).all()
    assert (weights > 0).all()
    assert weights.mean().item() == pytest.approx(1, abs=1e-5)


def test_the_training_weight_is_the_bell_curve_less_its_ends(training: FlowMatchScheduler) -> None:
    t = torch.linspace(0, 1000, 501, dtype=torch.float64)
    bell = (-2 * ((t - 500) / 1000).square()).exp() - math.exp(-0.5)
    weights = training.training_weight(t).double()
    torch.testing.assert_close(weights / weights[250], bell / bell[250], atol=1e-6, rtol=1e-5)
    assert weights[0] == weights[-1] == 0


def test_the_training_weight_needs_the_training_table(scheduler: FlowMatchScheduler) -> None:
    with pytest.raises(RuntimeError, match="training=True"):
        scheduler.training_weight(torch.tensor([500.0]))


def test_sampling_after_training_leaves_training_mode(training: FlowMatchScheduler) -> None:
    training.set_timesteps(4)
    assert not training.training
    assert len(training.sigmas) == 4


@pytest.mark.parametrize("steps", [0, -3])
def test_less_than_one_step_is_refused(scheduler: FlowMatchScheduler, steps: int) -> None:
    with pytest.raises(UsageError, match=f"at least 1, not {steps}"):
        scheduler.set_timesteps(steps)


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.5, math.nan])
def test_a_strength_outside_its_range_is_refused(scheduler: FlowMatchScheduler, strength: float) -> None:
    with pytest.raises(UsageError, match=f"not {strength}"):
        scheduler.set_timesteps(4, strength)
