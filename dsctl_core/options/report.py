"""Options of `dsctl report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from dsctl_core.options.base import Argument, Options


class ReportOptions(Options):
    """Options of `dsctl report`."""

    runs: Annotated[tuple[Path, ...], Argument()] = Field(
        min_length=1, description="Output folder of a run, finished or not; of several, the page compares them."
    )
    output: Path | None = Field(None, description="HTML file to write. Left out: report.html in the first folder.")
    csv: Path | None = Field(
        None,
        description="Write the metrics of the runs as one table, a row for each run and step: .csv or .parquet. "
        "Without --output, no page is written.",
    )
