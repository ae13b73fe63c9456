"""Check a whole dataset at little cost, before any model is loaded."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from itertools import islice

from dsctl_core.data.columns import Rows
from dsctl_core.data.dataset import UnifiedDataset
from dsctl_core.data.looking import look_at_files
from dsctl_core.data.problems import DataError, Kind, kind_of_problem
from dsctl_core.errors import DsctlError
from dsctl_core.files.digest import digest
from dsctl_core.progress import NoProgress, Progress
from dsctl_core.remote.address import place_of
from dsctl_core.remote.errors import RemoteError

MAX_ROWS_LISTED = 5


class DatasetError(DataError):
    """A dataset with bad rows. `problems` has one error per problem, up to the limit of the check."""

    def __init__(self, problem: str, *, hint: str | None = None, problems: tuple[RowProblem, ...] = ()) -> None:
        super().__init__(problem, hint=hint)
        self.problems = problems


class RowProblem(DataError):
    """An error in one row of a dataset; `row` counts from 0."""

    def __init__(self, problem: str, *, hint: str | None = None, kind: Kind = "other", row: int = 0) -> None:
        super().__init__(problem, hint=hint, kind=kind)
        self.row = row

    @classmethod
    def of(cls, row: int, error: DsctlError) -> RowProblem:
        """Return `error` as a problem of this row; raise it if it is one of the way to the files, not of the row."""
        if isinstance(error, RemoteError):
            raise error
        return cls(error.problem, hint=error.hint, kind=kind_of_problem(error), row=row)


def check_dataset(dataset: UnifiedDataset, progress: Progress | None = None, limit: int = 100) -> None:
    """Raise `DatasetError` if a column, caption or file is missing, unreadable or too small to train on.

    Only the beginning and the end of each file are read; a file is decoded only if its end is not that of its
    format. So damage in the middle of an image is found only when the row is loaded. The message has the first
    problem and the numbers of the next rows; `problems` of the error has all problems, up to `limit`.
    """
    dataset.require_prompts()
    with closing(row_problems(dataset, progress or NoProgress())) as all_problems:
        problems = tuple(islice(all_problems, limit))
    if not problems:
        return
    first, others = problems[0], problems[1:]
    problem = first.problem
    if others:
        rows = [str(number + 1) for number in dict.fromkeys(dataset.metadata.row_of(other.row) for other in others)]
        listed = ", ".join(rows[:MAX_ROWS_LISTED]) + (", ..." if len(rows) > MAX_ROWS_LISTED else "")
        count = f"{len(others)} more" if len(problems) < limit else f"at least {len(others)} more"
        problem += f" (and {count}: rows {listed})"
    raise DatasetError(problem, hint=first.hint, problems=problems)


def usable_part(
    dataset: UnifiedDataset, progress: Progress | None = None
) -> tuple[UnifiedDataset, tuple[RowProblem, ...]]:
    """Return the dataset without the rows that `check_dataset` rejects, and the problems of those rows."""
    dataset.require_prompts()
    with closing(row_problems(dataset, progress or NoProgress())) as all_problems:
        problems = tuple(all_problems)
    return (dataset.without({problem.row for problem in problems}), problems) if problems else (dataset, ())


def row_problems(dataset: UnifiedDataset, progress: Progress) -> Generator[RowProblem, None, None]:
    """Yield every problem of a dataset, in the order of the rows."""
    look_at_files(dataset, progress)
    if all(found_whole(part) for part in dataset.parts):
        return
    seen: set[tuple[str, ...]] = set()  # a file that many rows name is checked once
    problems = 0
    # To read a folder of frames again, of which nothing is known, costs more than to tell that it is the same.
    known = dataset.known is not None and not dataset.takes_folders
    numbers, cells = dataset.rows_in_use, dataset.metadata.rows
    progress.start("Checking the dataset", len(numbers), unit="row")
    try:
        for number in numbers:
            try:
                dataset.prompts(number)
            except DsctlError as error:
                problems += 1
                yield RowProblem.of(number, error)
            try:
                dataset.require_companions(number)
            except DsctlError as error:
                problems += 1
                yield RowProblem.of(number, error)
            for key in dataset.data_file_keys:
                # What goes along with the target is right or wrong with it.
                along = (cells.cell(number, dataset.data_file_keys[0]),) if key in dataset.along_keys else ()
                cell = ("", "") if known else (key, *map(repr, (cells.cell(number, key), *along)))
                if cell in seen:
                    continue
                try:
                    dataset.preview(number, key)
                    if not known:
                        seen.add(cell)
                except DsctlError as error:
                    problems += 1
                    yield RowProblem.of(number, error)
            progress.advance()
        if not problems:
            for part in dataset.parts:
                remember_whole(part)
    finally:
        progress.finish()


def found_whole(part: UnifiedDataset) -> bool:
    """Return whether the same rows, read in the same way, were checked before and no file of theirs has changed."""
    key = _key(part)
    return key is not None and part.known is not None and part.known.result(key) == part.known.states


def remember_whole(part: UnifiedDataset) -> None:
    """Keep that a check of all rows found no problem."""
    key = _key(part)
    if key is not None and part.known is not None:
        part.known.keep(key, part.known.states)


def _key(part: UnifiedDataset) -> str | None:
    if part.reading is None or part.known is None or not isinstance(part.metadata.rows, Rows):
        return None
    if len(part.rows_in_use) != len(part.metadata.rows):
        return None
    return digest(["check", part.reading, place_of(part.base_path), part.metadata.rows.digest()])
