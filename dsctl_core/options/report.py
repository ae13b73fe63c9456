"""Options of `dsctl report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from dsctl_core.options.base import Argument, Options
from dsctl_core.options.effects import NOT_SERVED, SERVED


class ReportOptions(Options):
    """Options of `dsctl report`."""

    idle = (SERVED, NOT_SERVED)

    runs: Annotated[tuple[Path, ...], Argument()] = Field(
        min_length=1,
        description="Output folder of a run, finished or not; of several, the page compares them. "
        "With --serve also a folder of runs.",
    )
    output: Path | None = Field(None, description="HTML file to write. Left out: report.html in the first folder.")
    csv: Path | None = Field(
        None,
        description="Write the metrics of the runs as one table, a row for each run and step: .csv or .parquet. "
        "Without --output, no page is written.",
    )
    serve: bool = Field(
        False,
        description="Serve a page about the runs that follows them as they go, on this machine only (127.0.0.1), until "
        "Ctrl-C. Nothing is written. Needs dsctl[serve].",
    )
    port: int = Field(8420, ge=0, le=65535, description="Port of --serve; 0 takes any that is free.")
