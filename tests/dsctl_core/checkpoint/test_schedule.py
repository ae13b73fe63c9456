"""scheduler_config.json translated: the noise levels are those of diffusers' own scheduler, whatever the file says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from dsctl_core.checkpoint.schedule import read_schedule, translate
from dsctl_core.errors import DsctlError
from dsctl_core.families import families
from dsctl_core.family import Schedule
from dsctl_core.scheduler import FlowMatchScheduler

HERE = Path("scheduler_config.json")
PUBLISHED = Schedule(training_mu=0.8)
LINE = {"base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256, "max_image_seq_len": 8192}


def ours(config: dict[str, Any], tokens: int, steps: int) -> torch.Tensor:
    scheduler = FlowMatchScheduler(translate(config, PUBLISHED, HERE))
    scheduler.set_timesteps(steps, dynamic_shift_len=tokens)
    return scheduler.sigmas


def theirs(config: dict[str, Any], tokens: int, steps: int) -> torch.Tensor:
    """The levels of diffusers' scheduler on the grid that its pipelines of flow matching use, without the last 0."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    slope = (scheduler.config.max_shift - scheduler.config.base_shift) / (
        scheduler.config.max_image_seq_len - scheduler.config.base_image_seq_len
    )
    mu = tokens * slope + scheduler.config.base_shift - slope * scheduler.config.base_image_seq_len
    dynamic = {"mu": mu} if scheduler.config.use_dynamic_shifting else {}
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), **dynamic)
    return scheduler.sigmas[:-1]


CONFIGS: dict[str, dict[str, Any]] = {
    **{f"constant {shift}": {"shift": shift, "use_dynamic_shifting": False} for shift in (1.0, 3.0, 5.0, 12.0, 16.0)},
    "the class's defaults": {},
    "constant beside a line": {"shift": 1.0, "use_dynamic_shifting": False, **LINE},
    "exponential": {"use_dynamic_shifting": True, **LINE},
    "exponential, stretched": {"use_dynamic_shifting": True, "shift_terminal": 0.02, **LINE},
    "constant, stretched": {"shift": 3.0, "shift_terminal": 0.1},
    "terminal false": {"use_dynamic_shifting": True, "shift_terminal": False, **LINE},
    "terminal null": {"use_dynamic_shifting": True, "shift_terminal": None, **LINE},
    "linear": {"use_dynamic_shifting": True, "time_shift_type": "linear", **LINE, "base_shift": 1.0, "max_shift": 4.0},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_levels_of_every_kind_of_file_are_those_of_diffusers(name: str):
    config = CONFIGS[name]
    # False means no stretch, as null does; diffusers itself would stretch to zero.
    reference = {key: None if value is False and key == "shift_terminal" else value for key, value in config.items()}
    for tokens in (64, 256, 4096, 6889):
        for steps in (2, 4, 9, 20, 50):
            torch.testing.assert_close(ours(config, tokens, steps), theirs(reference, tokens, steps), rtol=2e-6, atol=0)


@given(
    shift=st.floats(0.25, 20), low=st.floats(-1, 1), span=st.floats(0.1, 2), tokens=st.integers(16, 20_000),
    steps=st.integers(2, 60), dynamic=st.booleans(), terminal=st.none() | st.floats(0.01, 0.2),
)  # fmt: skip
@settings(max_examples=60)
def test_any_constants_give_the_levels_of_diffusers(shift, low, span, tokens, steps, dynamic, terminal):
    config = {
        "shift": shift, "use_dynamic_shifting": dynamic, "base_shift": low, "max_shift": low + span,
        "base_image_seq_len": 256, "max_image_seq_len": 4096, "shift_terminal": terminal,
    }  # fmt: skip
    torch.testing.assert_close(ours(config, tokens, steps), theirs(config, tokens, steps), rtol=5e-5, atol=2e-6)


def test_a_flow_shift_is_the_constant_shift_of_the_multistep_scheduler():
    config = {"use_flow_sigmas": True, "flow_shift": 5.0, "prediction_type": "flow_prediction"}
    theirs = UniPCMultistepScheduler.from_config(config)
    # Its grid starts at the shifted 0.999; the shift itself, s t / (1 + (s - 1) t), is what is compared.
    theirs.set_timesteps(10)
    grid = torch.linspace(1, 1 / 10, 10, dtype=torch.float64)
    torch.testing.assert_close(ours(config, 4096, 10).double(), 5 * grid / (1 + 4 * grid), rtol=1e-6, atol=0)
    assert theirs.sigmas[0] == pytest.approx(1, abs=1e-3)


def test_the_class_in_the_file_is_the_solver_and_an_unknown_setting_of_it_is_refused():
    saved = dict(
        UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0).config
    )
    named = {**saved, "_class_name": "UniPCMultistepScheduler"}
    assert translate(named, PUBLISHED, HERE).solver == "unipc"
    assert translate({**saved, "_class_name": "FlowMatchEulerDiscreteScheduler"}, PUBLISHED, HERE).solver == "euler"
    for name, value in (("solver_order", 3), ("use_flow_sigmas", False), ("disable_corrector", [0])):
        with pytest.raises(DsctlError, match=f"has the {name} .* of UniPCMultistepScheduler"):
            translate({**named, name: value}, PUBLISHED, HERE)


def test_a_constant_shift_is_that_of_training_too():
    schedule = translate({"shift": 6.0, **LINE}, PUBLISHED, HERE)
    assert schedule.training_mu == schedule.base_shift == schedule.max_shift == math.log(6)
    assert translate({"use_dynamic_shifting": True, **LINE}, PUBLISHED, HERE).training_mu == PUBLISHED.training_mu


def test_without_a_file_the_published_schedule_holds_and_no_family_changes_by_its_own_file(tmp_path: Path):
    assert read_schedule(PUBLISHED, None) is PUBLISHED
    assert families()
    for family in families().values():
        published = family.schedule
        names = (*LINE, "shift_terminal")
        own = {"use_dynamic_shifting": True, **{name: getattr(published, name) for name in names}}
        own["time_shift_type"] = "linear" if published.linear_shift else "exponential"
        file = tmp_path / "scheduler_config.json"
        file.write_text(json.dumps(own))
        assert read_schedule(published, file) == published


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_karras_sigmas": True}, "use_karras_sigmas"),
        ({"use_beta_sigmas": True}, "use_beta_sigmas"),
        ({"use_exponential_sigmas": True}, "use_exponential_sigmas"),
        ({"invert_sigmas": True}, "invert_sigmas"),
        ({"stochastic_sampling": True}, "stochastic_sampling"),
        ({"use_dynamic_shifting": "yes"}, "use_dynamic_shifting 'yes'"),
        ({"shift": "three"}, "shift 'three'"),
        ({"shift": True}, "shift True"),
        ({"shift": 0}, "shift 0"),
        ({"shift": float("nan")}, "shift nan"),
        ({"flow_shift": -1}, "flow_shift -1"),
        ({"shift_terminal": 1.5}, "shift_terminal 1.5"),
        ({"shift_terminal": True}, "shift_terminal True"),
        ({"use_dynamic_shifting": True, "time_shift_type": "cubic"}, "time_shift_type 'cubic'"),
        ({"use_dynamic_shifting": True, "base_shift": []}, "base_shift"),
        ({"use_dynamic_shifting": True, "base_image_seq_len": 5, "max_image_seq_len": 5}, "equal"),
    ],
)
def test_what_cannot_be_translated_names_the_file_and_the_field(config: dict[str, Any], message: str):
    with pytest.raises(DsctlError, match=r"scheduler_config\.json") as caught:
        translate(config, PUBLISHED, HERE)
    assert message in caught.value.problem and caught.value.hint
