"""A page about one run or several: curves, samples over time, options and hardware."""

from dsctl_core.report.run import write_report

__all__ = ["write_report"]
