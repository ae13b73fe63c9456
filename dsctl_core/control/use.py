"""Configure the use of a control network: its inputs, its scale, and the noise levels at which it acts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.side_network import STEERED_BY, SideNetwork
from dsctl_core.units import Inputs, PipelineUnit

# The input with a ControlUse for each control network by name; a network without one has that it was made with.
USES = "controls"


@dataclass(frozen=True)
class ControlUse:
    """The settings of a control network: `scale`, and noise levels from sigma `start` down to `end`, both included.

    `mode` is the number of the kind of control picture, for a network that takes several.
    """

    scale: float = 1.0
    start: float = 1.0
    end: float = 0.0
    mode: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.end <= self.start <= 1:
            raise UsageError(
                f"a control network cannot act from sigma {self.start:g} down to {self.end:g}",
                hint="1 is noise and 0 the clean picture: give 1 >= start >= end >= 0",
            )

    def acts_at(self, timestep: Tensor) -> bool:
        """Return whether the network is active at `timestep`, (B,) or ().

        Raises DsctlError if only some samples of a batch are in the range.
        """
        if self.scale == 0:
            return False
        if (self.start, self.end) == (1, 0):
            return True
        inside = [1000 * self.end <= each <= 1000 * self.start for each in timestep.flatten().tolist()]
        if any(inside) != all(inside):
            raise DsctlError(
                f"one batch has noise levels inside and outside of sigma {self.start:g} to {self.end:g}",
                hint="let the control network act at all levels, or give a batch size of 1",
            )
        return all(inside)


class NetworkControl(Protocol):
    """The effect of a control network: a ResidualControl or a HookControl."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The inputs of `model_fn` that the control reads."""
        ...

    def __call__(self, network: nn.Module, denoiser: nn.Module, inputs: Inputs) -> AbstractContextManager[Inputs]:
        """Return the block in which `inputs`, with what it adds, are in force."""
        ...


def control_network(
    name: str,
    control: NetworkControl,
    units: Sequence[PipelineUnit],
    columns: Sequence[str] = (),
    *,
    borrows: bool = False,
) -> SideNetwork:
    """Return the side network called `name` that acts by `control`; its `units` read `columns` of a row.

    One that `borrows` runs layers of the denoiser as its own.
    """
    return SideNetwork(name, tuple(units), tuple(columns), control, control.reads, borrows)


def latents_name(name: str) -> str:
    """Return the name of the input with the control latents of the network `name`."""
    return f"{name}_latents"


def reads_of(function: Callable[..., Any], name: str, without: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the `model_fn` inputs that `function` reads: its parameters, except those in `without`."""
    own = (*without, "mode", "scale")
    named = [parameter for parameter in inspect.signature(function).parameters if parameter not in own]
    return tuple(latents_name(name) if parameter == "control" else parameter for parameter in named)


def arguments_of(
    function: Callable[..., Any], name: str, inputs: Inputs, use: ControlUse, without: Sequence[str]
) -> Inputs:
    """Return the arguments for `function` from `inputs`; `control` are the control latents of the network `name`.

    Parameters `mode` and `scale` are those of `use`.

    Raises DsctlError for a missing input. Parameters in `without` are left out.
    """
    available = {**inputs, **(inputs.get(STEERED_BY) or {}), "control": inputs[latents_name(name)]}
    available |= {"mode": use.mode, "scale": use.scale}
    chosen = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in without:
            continue
        if parameter.name in available:
            chosen[parameter.name] = available[parameter.name]
        elif parameter.default is parameter.empty:
            raise DsctlError(
                f"the control network {name} needs the input {parameter.name!r}, which was not given",
                hint=f"given: {', '.join(sorted(inputs))}",
            )
    return chosen


def use_now(name: str, inputs: Inputs, usual: ControlUse) -> ControlUse | None:
    """Return the settings of the network `name`, or None if it is inactive at this timestep or has no latents.

    `usual` are its settings where `inputs` have none.
    """
    use = (inputs.get(USES) or {}).get(name, usual)
    given = inputs.get(latents_name(name)) is not None
    return use if given and use.acts_at(inputs["timestep"]) else None
