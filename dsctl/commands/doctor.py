"""`dsctl doctor`."""

from __future__ import annotations

import dataclasses

import typer

from dsctl import out
from dsctl.flags import takes
from dsctl_core.options import DoctorOptions


@takes(DoctorOptions)
def doctor(options: DoctorOptions) -> None:
    """Check this machine: versions, devices, memory, disk.

    The exit code is 1 when something keeps dsctl from working.
    """
    from dsctl_core.commands.doctor import examine

    report = examine(options)
    sections = {name: value for name, value in dataclasses.asdict(report).items() if name != "problems"}
    lines = []
    for name, values in sections.items():
        if values:
            lines += [name.replace("_", " "), *out.columns([(k, str(v)) for k, v in values.items()], indent=2)]
    lines += [f"problem: {problem}" for problem in report.problems] or ["no problem found"]
    out.show({**sections, "problems": report.problems}, lines)
    if report.problems:
        raise typer.Exit(1)
