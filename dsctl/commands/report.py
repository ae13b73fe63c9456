"""`dsctl report`."""

from __future__ import annotations

from dsctl import out
from dsctl.flags import takes
from dsctl_core.options import ReportOptions


@takes(ReportOptions)
def report(options: ReportOptions) -> None:
    """Write a page about a run, or compare several."""
    from dsctl_core.commands.report import report

    out.result("Written", report=report(options).report)
