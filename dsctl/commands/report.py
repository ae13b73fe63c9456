"""`dsctl report`."""

from __future__ import annotations

from dsctl import out
from dsctl.flags import takes
from dsctl_core.options import ReportOptions


@takes(ReportOptions)
def report(options: ReportOptions) -> None:
    """Write or serve a page about a run, or compare several; or write their metrics as a table."""
    from dsctl_core.commands.report import report, serve

    if options.serve:
        serve(options, lambda address: out.show({"address": address}, [f"Serving {address} until Ctrl-C"]))
        return
    written = report(options)
    files = {"report": written.report, "table": written.table}
    given = {name: path for name, path in files.items() if path is not None}
    out.show(given, ["Written", *out.columns([(name, str(path)) for name, path in given.items()], indent=2)])
