"""`dsctl report`: a page about a run, or one that compares several."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dsctl_core.options import ReportOptions
from dsctl_core.report import write_report


@dataclass(frozen=True)
class ReportResult:
    """Where the page is."""

    report: Path


def report(options: ReportOptions) -> ReportResult:
    """Write the page about the runs in `options`; a DsctlError for a folder that holds no run."""
    return ReportResult(write_report(options.runs, options.output))
