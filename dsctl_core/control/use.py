"""Configure the use of a control network: its inputs, its scale, and the noise levels at which it acts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.pipeline import SideNetwork
from dsctl_core.units import Inputs, PipelineUnit

# The input that has a ControlUse for control networks by name; without one a network acts as it is.
USES = "controls"


@dataclass(frozen=True)
class ControlUse:
    """A control network counts `scale` times, at the noise levels from sigma `start` down to `end`, both included."""

    scale: float = 1.0
    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.end <= self.start <= 1:
            raise UsageError(
                f"a control network cannot act from sigma {self.start:g} down to {self.end:g}",
                hint="1 is noise and 0 the clean picture: give 1 >= start >= end >= 0",
            )

    def acts_at(self, timestep: Tensor) -> bool:
        """Return whether it acts at `timestep` (B,) or (); a batch of which only a part is in its range is refused."""
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
    """What a control network does: a ResidualControl or a HookControl."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The inputs that it looks at."""
        ...

    def __call__(self, network: nn.Module, denoiser: nn.Module, inputs: Inputs) -> AbstractContextManager[Inputs]:
        """Return the block in which `inputs`, with what it adds, are in force."""
        ...


def control_network(
    name: str, control: NetworkControl, units: Sequence[PipelineUnit], columns: Sequence[str] = ()
) -> SideNetwork:
    """Return the side network called `name` that acts by `control`; its `units` read `columns` of a row."""
    return SideNetwork(name, tuple(units), tuple(columns), control, control.reads)


def latents_name(name: str) -> str:
    """Return the name of the latents that a control network is given."""
    return f"{name}_latents"


def reads_of(function: Callable[..., Any], name: str, without: Sequence[str]) -> tuple[str, ...]:
    """Return the inputs that `function` reads of a call of model_fn: its parameters, but for those in `without`."""
    named = [parameter for parameter in inspect.signature(function).parameters if parameter not in without]
    return tuple(latents_name(name) if parameter == "control" else parameter for parameter in named)


def arguments_of(function: Callable[..., Any], name: str, inputs: Inputs, without: Sequence[str]) -> Inputs:
    """Return what `function` is called with of `inputs`; `control` is what the network `name` was given."""
    available = {**inputs, "control": inputs[latents_name(name)]}
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


def use_now(name: str, inputs: Inputs) -> ControlUse | None:
    """Return how the network `name` is used in this call; None where it does not act, or was given nothing."""
    use = (inputs.get(USES) or {}).get(name, ControlUse())
    given = inputs.get(latents_name(name)) is not None
    return use if given and use.acts_at(inputs["timestep"]) else None
