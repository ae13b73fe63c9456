"""Convert a scheduler_config.json of diffusers to a Schedule, with every field that changes the noise levels.

The fields are those of diffusers' FlowMatchEulerDiscreteScheduler, and those of UniPCMultistepScheduler with
`use_flow_sigmas` that determine the noise levels. The class determines the solver.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsctl_core.errors import DsctlError
from dsctl_core.family import Schedule
from dsctl_core.files.json import read_json
from dsctl_core.options.base import Solver

# Other spacings of the levels, which no published flow-matching model uses.
REFUSED = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
)
UNIPC = "UniPCMultistepScheduler"
# What the UniPC solver does here; files with other values are not known.
UNIPC_SETTINGS = {
    "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
    "solver_order": 2,
    "solver_type": "bh2",
    "predict_x0": True,
    "lower_order_final": True,
    "final_sigmas_type": "zero",
    "thresholding": False,
    "disable_corrector": [],
}
LINE = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")


def read_schedule(published: Schedule, path: Path | None) -> Schedule:
    """Return the schedule in the scheduler_config.json at `path`, or `published` if `path` is None.

    A schedule that depends on the image size keeps the training shift and the fitted `sampling_mu` of `published`.
    Raises DsctlError for a field of the wrong type, and for an unsupported spacing of the levels.
    """
    return published if path is None else translate(read_json(path), published, path)


def translate(config: Mapping[str, Any], published: Schedule, path: Path) -> Schedule:
    """Return the schedule for `config`, the content of the file `path`; see `read_schedule`."""
    for name in REFUSED:
        if _boolean(config, name, path):
            raise DsctlError(f"{path} has {name}: true, which is not supported", hint="set it to false")
    terminal, solver = _terminal(config, path), _solver(config, published, path)
    if not _boolean(config, "use_dynamic_shifting", path):
        return replace(Schedule.constant(_constant_shift(config, path)), shift_terminal=terminal, solver=solver)
    kind = config.get("time_shift_type", "exponential")
    if kind not in ("exponential", "linear"):
        raise DsctlError(f"{path} has the time_shift_type {kind!r}", hint="it is exponential or linear")
    line: dict[str, Any] = {name: _number(config, name, path) for name in LINE if config.get(name) is not None}
    schedule = replace(published, **line, shift_terminal=terminal, linear_shift=kind == "linear", solver=solver)
    if schedule.max_image_seq_len == schedule.base_image_seq_len:
        raise DsctlError(f"{path} has equal base_image_seq_len and max_image_seq_len", hint="restore the file")
    return schedule


def _solver(config: Mapping[str, Any], published: Schedule, path: Path) -> Solver:
    """Return the solver of the class that the file names, and of `published` if it names none.

    Raises DsctlError for another setting of UniPC.
    """
    if config.get("_class_name") != UNIPC:
        return published.solver if "_class_name" not in config else "euler"
    for name, known in UNIPC_SETTINGS.items():
        if config.get(name, known) != known:
            raise DsctlError(f"{path} has the {name} {config[name]!r} of {UNIPC}", hint=f"only {known!r} is supported")
    return "unipc"


def _constant_shift(config: Mapping[str, Any], path: Path) -> float:
    name = "flow_shift" if config.get("flow_shift") is not None else "shift"
    shift = _number(config, name, path) if config.get(name) is not None else 1.0
    if shift <= 0:
        raise DsctlError(f"{path} has the {name} {shift:g}", hint="a shift is above 0; 1 is none")
    return shift


def _terminal(config: Mapping[str, Any], path: Path) -> float | None:
    """Return the last level, or None if the levels are not stretched; some files have false instead of null."""
    value = config.get("shift_terminal")
    if value is None or value is False:
        return None
    terminal = _number(config, "shift_terminal", path)
    if not 0 < terminal < 1:
        raise DsctlError(f"{path} has the shift_terminal {terminal:g}", hint="it is between 0 and 1, or null")
    return terminal


def _boolean(config: Mapping[str, Any], name: str, path: Path) -> bool:
    value = config.get(name, False)
    if value is not None and not isinstance(value, bool):
        raise DsctlError(f"{path} has the {name} {value!r}", hint="it is true or false")
    return bool(value)


def _number(config: Mapping[str, Any], name: str, path: Path) -> float:
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DsctlError(f"{path} has the {name} {value!r}", hint="it is a number")
    return value
