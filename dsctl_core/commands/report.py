"""`dsctl report`: a page about a run, or one that compares several, in a file or served; their metrics as a table."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files.atomic import atomic_path, prepare_folder, write_text
from dsctl_core.files.ownership import Kind, require_replaceable
from dsctl_core.options import ReportOptions

LOGGER = logging.getLogger(__name__)
TABLES = (".csv", ".parquet")


@dataclass(frozen=True)
class ReportResult:
    """The files that were written; `report` is None if only the table was requested."""

    report: Path | None
    table: Path | None = None


def report(options: ReportOptions) -> ReportResult:
    """Write the page about the runs in `options`, the table of their metrics, or both.

    The page goes to `output`, else to report.html in the first folder, unless only `csv` is given. Raises DsctlError
    for a folder that holds no run, for a file to write that is neither a page nor a table by its suffix, and for a
    file that is there and is not of the kind that would replace it.
    """
    from dsctl_core.report.html import PAGE_KINDS, RUN_PAGE
    from dsctl_core.report.run import report_page
    from dsctl_core.report.runs import metrics_table, names_of, read_runs

    page = None if options.output is None and options.csv is not None else _page_path(options)
    if page is not None:
        require_replaceable(page, PAGE_KINDS[RUN_PAGE], "--output")
    if options.csv is not None:
        _refuse_suffix("--csv", options.csv, TABLES)
        require_replaceable(options.csv, METRICS_TABLE, "--csv")
    runs = read_runs(options.runs)
    for text in (text for run in runs for text in run.faults):
        LOGGER.warning(text)
    if options.csv is not None:
        prepare_folder(options.csv.parent)
        table = metrics_table(runs, names_of(runs))
        with atomic_path(options.csv) as temporary:
            if options.csv.suffix.lower() == ".parquet":
                table.to_parquet(temporary, index=False)
            else:
                table.to_csv(temporary, index=False)
    if page is not None:
        prepare_folder(page.parent)
        write_text(page, report_page(runs))
    return ReportResult(page, options.csv)


def serve(options: ReportOptions, started: Callable[[str], None]) -> None:
    """Serve a page about the runs in `options` that follows them, until it is interrupted; see `report.live.server`.

    `started` is called with the address once it can be opened.
    """
    from dsctl_core.report.live.server import serve as serve_runs

    serve_runs(options.runs, options.port, started)


def _page_path(options: ReportOptions) -> Path:
    page = options.output or options.runs[0] / "report.html"
    _refuse_suffix("--output", page, (".html", ".htm"))
    return page


def _refuse_suffix(flag: str, path: Path, suffixes: tuple[str, ...]) -> None:
    if path.is_dir():
        raise DsctlError(f"{path} is a folder", hint=f"give {flag} a name that ends in {suffixes[0]}")
    if path.suffix.lower() not in suffixes:
        raise UsageError(
            f"{flag} is {str(path)!r}, which does not end in {' or '.join(suffixes)}",
            hint=f"give it a name that ends in {suffixes[0]}; other files are never written over",
        )


def _is_table_of_metrics(path: Path) -> bool:
    """Return whether the table at `path` has the first columns of one that this command writes."""
    from dsctl_core.report.runs import KEYS

    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet

        return tuple(pyarrow.parquet.read_schema(path).names[: len(KEYS)]) == KEYS
    with path.open(encoding="utf-8") as stream:
        return tuple(stream.readline().rstrip("\n").split(",")[: len(KEYS)]) == KEYS


METRICS_TABLE = Kind("a table of `dsctl report`", _is_table_of_metrics)
