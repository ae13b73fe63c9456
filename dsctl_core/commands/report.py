"""`dsctl report`: a page about a run, or one that compares several, and their metrics as a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files.atomic import atomic_path, prepare_folder, write_text
from dsctl_core.options import ReportOptions

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
    table in place of which this command would write its own.
    """
    from dsctl_core.report.run import report_page
    from dsctl_core.report.runs import metrics_table, names_of, read_runs

    page = None if options.output is None and options.csv is not None else _page_path(options)
    if options.csv is not None:
        _refuse_suffix("--csv", options.csv, TABLES)
        if options.csv.exists() and not _is_table_of_metrics(options.csv):
            raise DsctlError(
                f"{options.csv} is there already, and `dsctl report` did not write it", hint="give --csv another name"
            )
    runs = read_runs(options.runs)
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

    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet

            return tuple(pyarrow.parquet.read_schema(path).names[: len(KEYS)]) == KEYS
        with path.open(encoding="utf-8") as stream:
            return tuple(stream.readline().rstrip("\n").split(",")[: len(KEYS)]) == KEYS
    except (OSError, ValueError):  # pyarrow's errors are ValueErrors
        return False
