"""A command with an option that does nothing, to show that the test of options notices."""

from __future__ import annotations

from pydantic import Field

from dsctl import out
from dsctl.flags import takes
from dsctl_core.options import Options


class IdleOptions(Options):
    """One option that counts, and one that does not."""

    loud: bool = Field(False, description="Shout.")
    fast: bool = Field(False, description="Nothing at all.")


@takes(IdleOptions)
def speak(options: IdleOptions) -> None:
    """Say something."""
    out.result("HELLO" if options.loud else "Hello", loud=options.loud)
