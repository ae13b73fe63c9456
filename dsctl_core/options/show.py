"""Options of the commands that only show something."""

from typing import Annotated, ClassVar

from pydantic import Field

from dsctl_core.options.base import Argument, Names, Options, Text
from dsctl_core.options.effects import WITHOUT_GRAPH, Idle


class ModelsListOptions(Options):
    """Options of `dsctl models list`: none."""


class ModelsShowOptions(Options):
    """Options of `dsctl models show`."""

    idle: ClassVar[tuple[Idle, ...]] = (WITHOUT_GRAPH,)

    name: Annotated[Text, Argument()] = Field(description="A preset or a family, as `dsctl models` lists them.")
    graph: bool = Field(False, description="Show its units: which run once for each sample, which at every step.")
    trainable_models: Names = Field(
        ("dit",), min_length=1, description="With --graph: the components that are trained, separated by commas."
    )


class DoctorOptions(Options):
    """Options of `dsctl doctor`."""

    hub: bool = Field(False, description="Try whether the model hubs can be reached.")
