"""Options of the training objective: how noise levels are drawn and weighted."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dsctl_core.errors import UsageError
from dsctl_core.options.base import Options
from dsctl_core.options.effects import NOT_NORMAL, OF_DIFFSYNTH, Idle

Boundary = Annotated[float, Field(ge=0, le=1)]


class ObjectiveOptions(Options):
    """The noise levels that training draws, and their weights."""

    panel: ClassVar[str] = "Noise levels"
    idle: ClassVar[tuple[Idle, ...]] = (NOT_NORMAL, OF_DIFFSYNTH)

    timestep_sampling: Literal["uniform", "logit_normal", "diffsynth"] = Field(
        "uniform",
        description="How noise levels are drawn: all alike, those in the middle more often, or all alike from the very "
        "levels and with the weights of DiffSynth-Studio.",
    )
    logit_mean: Annotated[float, Field(ge=-10, le=10)] | None = Field(
        None, description="With logit_normal: above 0 draws more noise, below 0 less. Left out: 0."
    )
    logit_std: Annotated[float, Field(gt=0, le=10)] | None = Field(
        None, description="With logit_normal: how far the draws spread. Left out: 1."
    )
    timestep_shift: Annotated[float, Field(gt=0, le=100)] | None = Field(
        None, description="How far levels are shifted towards noise; 1 is not at all. Left out: the family's own."
    )
    min_timestep_boundary: Boundary = Field(
        0.0, description="Draw no noisier levels than this place in the schedule: 0 is noise, 1 the clean picture."
    )
    max_timestep_boundary: Boundary = Field(
        1.0, description="Draw no cleaner levels than this place in the schedule: 0 is noise, 1 the clean picture."
    )
    loss_weighting: Literal["bell", "none"] = Field(
        "bell", description="How much each level counts: those in the middle more, or all alike."
    )

    def check(self) -> None:
        """Raise a UsageError where no level is left to draw."""
        if self.min_timestep_boundary >= self.max_timestep_boundary:
            raise UsageError(
                f"--min-timestep-boundary {self.min_timestep_boundary:g} is not below "
                f"--max-timestep-boundary {self.max_timestep_boundary:g}",
                hint="0 is noise and 1 the clean picture: 0 and 0.4 are the noisy levels, 0.4 and 1 the others",
            )
