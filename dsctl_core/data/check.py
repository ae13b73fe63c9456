"""Checks of a whole dataset that cost little, for before any model is loaded."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from itertools import islice

from dsctl_core.data.dataset import TEXT_COLUMNS, UnifiedDataset
from dsctl_core.data.problems import DataError, Kind, kind_of_problem
from dsctl_core.errors import DsctlError
from dsctl_core.progress import NoProgress, Progress

ROWS_NAMED = 5


class DatasetError(DataError):
    """A dataset with bad rows; `problems` has an error for each of them, up to the limit at which the check stopped."""

    def __init__(self, problem: str, *, hint: str | None = None, problems: tuple[RowProblem, ...] = ()) -> None:
        super().__init__(problem, hint=hint)
        self.problems = problems


class RowProblem(DataError):
    """What is wrong with one row (a number from 0) of a dataset."""

    def __init__(self, problem: str, *, hint: str | None = None, kind: Kind = "other", row: int = 0) -> None:
        super().__init__(problem, hint=hint, kind=kind)
        self.row = row

    @classmethod
    def of(cls, row: int, error: DsctlError) -> RowProblem:
        """Return `error` as a problem of this row."""
        return cls(error.problem, hint=error.hint, kind=kind_of_problem(error), row=row)


def check_dataset(dataset: UnifiedDataset, progress: Progress | None = None, limit: int = 100) -> None:
    """Refuse a dataset that would stop a training run: a column, text or file that is missing, unreadable, too small.

    Only the beginnings and ends of files are read, and a file is decoded only if it does not end as it should, so
    damage in the middle of a picture still shows when the row is loaded. The error tells the first problem and where
    the next ones are; it has all of them, up to `limit`, in `problems`.
    """
    dataset.metadata.require_columns(TEXT_COLUMNS)
    with closing(row_problems(dataset, progress or NoProgress())) as found:
        problems = tuple(islice(found, limit))
    if not problems:
        return
    first, others = problems[0], problems[1:]
    problem = first.problem
    if others:
        rows = [str(number + 1) for number in dict.fromkeys(other.row for other in others)]
        named = ", ".join(rows[:ROWS_NAMED]) + (", ..." if len(rows) > ROWS_NAMED else "")
        count = f"{len(others)} more" if len(problems) < limit else f"at least {len(others)} more"
        problem += f" (and {count}: rows {named})"
    raise DatasetError(problem, hint=first.hint, problems=problems)


def usable_part(
    dataset: UnifiedDataset, progress: Progress | None = None
) -> tuple[UnifiedDataset, tuple[RowProblem, ...]]:
    """Return the dataset without the rows that `check_dataset` would refuse, and what is wrong with those."""
    dataset.metadata.require_columns(TEXT_COLUMNS)
    with closing(row_problems(dataset, progress or NoProgress())) as found:
        problems = tuple(found)
    return (dataset.without({problem.row for problem in problems}), problems) if problems else (dataset, ())


def row_problems(dataset: UnifiedDataset, progress: Progress) -> Generator[RowProblem, None, None]:
    """Give every problem in the order of the rows."""
    seen: set[tuple[str, str]] = set()  # the same file in many rows is looked at once
    progress.start("Checking the dataset", len(dataset.numbers))
    try:
        for number in dataset.numbers:
            row = dataset.metadata.rows[number]
            for key in TEXT_COLUMNS:
                try:
                    with dataset.placed(number, key):
                        dataset.captions.texts(row.get(key))
                except DsctlError as error:
                    yield RowProblem.of(number, error)
            for key in dataset.data_file_keys:
                if (cell := (key, repr(row.get(key)))) in seen:
                    continue
                try:
                    dataset.preview(number, key)
                    seen.add(cell)
                except DsctlError as error:
                    yield RowProblem.of(number, error)
            progress.advance()
    finally:
        progress.finish()
