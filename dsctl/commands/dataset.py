"""`dsctl dataset validate`, `dsctl dataset caption` and `dsctl dataset annotate`."""

from __future__ import annotations

from dataclasses import asdict

import typer

from dsctl import out
from dsctl.flags import takes
from dsctl_core.options import DatasetAnnotateOptions, DatasetCaptionOptions, DatasetValidateOptions


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


@takes(DatasetCaptionOptions)
def caption(options: DatasetCaptionOptions) -> None:
    """Write a caption for each picture or clip without one, by a vision-language model.

    What is there is kept. A run that was stopped goes on where it was when it is started again. The exit code is 1 when
    a file could not be described.
    """
    from dsctl_core.commands.caption import caption

    result = caption(options, progress=out.progress())
    out.result("Captioned", labels={"cut": "cut off"}, **asdict(result))
    if result.failed:
        raise typer.Exit(1)


@takes(DatasetAnnotateOptions)
def annotate(options: DatasetAnnotateOptions) -> None:
    """Make control pictures of the pictures of a dataset, in control_KIND/, and the table metadata_KIND.csv.

    Train with that table: --dataset-metadata-path. What is there already is kept.
    """
    from dsctl_core.commands.annotate import annotate

    result = annotate(options, progress=out.progress())
    out.result("Annotated", labels={"nobody": "without anybody"}, **asdict(result))
