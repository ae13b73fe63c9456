"""Options of the commands that only show something."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dsctl_core.options.base import Argument, Options, Text


class ModelsListOptions(Options):
    """Options of `dsctl models list`: none."""


class ModelsShowOptions(Options):
    """Options of `dsctl models show`."""

    name: Annotated[Text, Argument()] = Field(description="A preset or a family, as `dsctl models` lists them.")


class DoctorOptions(Options):
    """Options of `dsctl doctor`."""

    hub: bool = Field(False, description="Try whether the model hubs can be reached.")
