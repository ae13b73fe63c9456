"""`dsctl dataset validate`."""

from __future__ import annotations

from dataclasses import asdict

import typer

from dsctl import out
from dsctl.flags import takes
from dsctl_core.options import DatasetValidateOptions


@takes(DatasetValidateOptions)
def validate(options: DatasetValidateOptions) -> None:
    """Check every row and file of a dataset.

    The exit code is 1 when it has problems.
    """
    from dsctl_core.commands.dataset import validate

    result = validate(options, progress=out.progress())
    out.show(
        {
            "rows": result.found.rows,
            "problems": [asdict(problem) for problem in result.found.problems],
            "summary": result.summary,
        },
        result.lines(),
    )
    if not result.clean:
        raise typer.Exit(1)
