"""`dsctl init`."""

from __future__ import annotations

from dataclasses import asdict

from dsctl import out
from dsctl.flags import takes
from dsctl_core.options.first_steps import InitOptions


@takes(InitOptions)
def init(options: InitOptions) -> None:
    """Write a run.toml that trains on a folder of pictures or clips."""
    from dsctl_core.commands.init import init

    result = init(options, progress=out.progress())
    out.result(f"Written: dsctl train --config {result.output}", **asdict(result))
