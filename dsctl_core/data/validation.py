"""`dsctl dataset validate`: every row checked, every file decoded, on all cores and without torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dsctl_core.data.dataset import TEXT_COLUMNS, UnifiedDataset
from dsctl_core.data.duplicates import same_bytes, same_pictures
from dsctl_core.data.inspection import FileFacts, inspect_all
from dsctl_core.data.problems import DataError, kind_of_problem
from dsctl_core.data.sizes import Resize
from dsctl_core.data.video import FrameRule
from dsctl_core.errors import DsctlError
from dsctl_core.progress import NoProgress, Progress

ENLARGED = 1.05  # from this scale on a picture is said to be enlarged
CHUNK = 16  # files that a process is sent at once
FEWEST_FOR_PROCESSES = 64  # below that, starting processes takes longer than they save

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: with row number `row` (counting from 1), or with the whole dataset (None)."""

    kind: str
    level: Level
    message: str
    hint: str | None
    row: int | None = None
    file: str | None = None


@dataclass
class Sample:
    """A row's files that could be used, each with the size that it comes out with."""

    number: int
    prompts: tuple[str, ...]
    sizes: list[tuple[int, ...]] = field(default_factory=list)


@dataclass
class Validation:
    """What was found."""

    rows: int
    layout: str
    problems: list[Problem]
    samples: list[Sample]
    files: dict[Path, FileFacts]
    rows_of: dict[Path, list[int]]  # the rows that name a file, from 0

    def count(self, level: Level) -> int:
        """Return how many problems are errors, or warnings."""
        return sum(problem.level == level for problem in self.problems)


@dataclass(frozen=True)
class Checks:
    """What the files of a dataset must be fit for. `frames` is None where videos are not taken."""

    resize: Resize
    frames: FrameRule | None = None
    workers: int | None = None


def cannot_be_read(error: DsctlError) -> Validation:
    """Return what is found of a dataset whose table cannot be read at all."""
    problem = Problem(kind_of_problem(error), "error", error.problem, error.hint)
    return Validation(0, "", [problem], [], {}, {})


def validate_dataset(dataset: UnifiedDataset, checks: Checks, progress: Progress | None = None) -> Validation:
    """Check every row of a dataset and decode every file of it."""
    found = Validation(len(dataset.metadata.rows), dataset.metadata.layout, [], [], {}, {})
    try:
        dataset.metadata.require_columns(TEXT_COLUMNS)
    except DsctlError as error:
        found.problems.append(Problem(kind_of_problem(error), "error", error.problem, error.hint))
    named = [_files_of_row(dataset, number, found) for number in range(found.rows)]
    paths = list(dict.fromkeys(path for cells in named for entries in cells.values() for path in entries))
    faults: dict[Path, DataError] = {}
    for path, fact in _inspected(paths, checks, progress or NoProgress()):
        if isinstance(fact, FileFacts):
            found.files[path] = fact
        else:
            faults[path] = fact
    for number, cells in enumerate(named):
        found.samples.append(_judged(dataset, number, cells, faults, checks, found))
    found.problems += _warnings_of_files(found, checks.resize)
    found.problems += _same_files(dataset, found)
    found.problems += _swapped_columns(dataset, named, found)
    found.problems.sort(key=lambda problem: (problem.row is not None, problem.row or 0))
    return found


def _files_of_row(dataset: UnifiedDataset, number: int, found: Validation) -> dict[str, list[Path]]:
    """Return the files that each column of a row names; what names none is a problem."""
    cells: dict[str, list[Path]] = {}
    for key in dataset.data_file_keys:
        try:
            cells[key] = dataset.files(number, key)
        except DsctlError as error:
            _add(found, number, error)
        for path in cells.get(key, ()):
            found.rows_of.setdefault(path, []).append(number)
    return cells


def _judged(
    dataset: UnifiedDataset,
    number: int,
    cells: dict[str, list[Path]],
    faults: dict[Path, DataError],
    checks: Checks,
    found: Validation,
) -> Sample:
    """Check what the files of a row turned out to be, and its prompt."""
    sample = Sample(number, ())
    for key in TEXT_COLUMNS:
        if key in dataset.metadata.columns:
            try:
                with dataset.placed(number, key):
                    sample.prompts = dataset.captions.texts(dataset.metadata.rows[number].get(key))
            except DsctlError as error:
                _add(found, number, error)
    for key, paths in cells.items():
        for path in paths:
            try:
                with dataset.placed(number, key):
                    if path in faults:
                        raise faults[path]
                    sample.sizes.append(_size(path, found.files[path], checks))
            except DsctlError as error:
                _add(found, number, error, path)
    return sample


def _size(path: Path, facts: FileFacts, checks: Checks) -> tuple[int, ...]:
    """Return (width, height), or (width, height, frames), that a file comes out with."""
    try:
        size = checks.resize.target_size(*facts.size)
        if not facts.is_video or checks.frames is None:
            return (*size,)
        return (*size, len(checks.frames.pick(facts.times, facts.end)))
    except DataError as error:
        raise DataError(f"{path}: {error.problem}", hint=error.hint, kind=error.kind) from error


def _inspected(paths: list[Path], checks: Checks, progress: Progress) -> Iterator[tuple[Path, FileFacts | DataError]]:
    """Inspect files on all cores and yield what they are, in the order of `paths`."""
    videos = checks.frames is not None
    workers = checks.workers or cores()
    chunks = [paths[first : first + CHUNK] for first in range(0, len(paths), CHUNK)]
    progress.start("Decoding", len(paths))
    try:
        for chunk, facts in zip(chunks, _in_processes(chunks, videos, workers, len(paths)), strict=True):
            yield from zip(chunk, facts, strict=True)
            progress.advance(len(chunk))
    finally:
        progress.finish()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _in_processes(
    chunks: list[list[Path]], videos: bool, workers: int, files: int
) -> Iterator[list[FileFacts | DataError]]:
    if workers == 1 or files < FEWEST_FOR_PROCESSES:
        for chunk in chunks:
            yield inspect_all(chunk, videos)
        return
    import signal
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    # Spawned: a fork would copy whatever threads of this process are doing, such as drawing a progress bar.
    pool = ProcessPoolExecutor(
        min(workers, len(chunks)),
        mp_context=get_context("spawn"),
        initializer=signal.signal,  # Ctrl-C is for this process to see
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        yield from pool.map(inspect_all, chunks, [videos] * len(chunks))
    except BrokenProcessPool as error:
        raise DsctlError(
            "a process that decodes files was ended from outside, most likely for want of memory",
            hint="use fewer of them: --workers 1",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _add(found: Validation, number: int, error: DsctlError, path: Path | None = None) -> None:
    file = str(path) if path else None
    found.problems.append(Problem(kind_of_problem(error), "error", error.problem, error.hint, number + 1, file))


def _warnings_of_files(found: Validation, resize: Resize) -> Iterator[Problem]:
    """Yield what is odd about a file, once for each file."""
    for path, facts in found.files.items():
        row = found.rows_of[path][0] + 1
        jpegs = {"JPEG", "MPO"}  # some cameras write JPEGs with a second picture in them
        expected = facts.expected_format
        if expected is not None and facts.format != expected and not {facts.format, expected} <= jpegs:
            message = f"row {row}: {path} is a {facts.format}, but its name says {expected}"
            yield Problem("wrong suffix", "warning", message, "give it the right suffix", row, str(path))
        if facts.frames > 1 and not facts.is_video and facts.format != "MPO":
            message = f"row {row}: {path} has {facts.frames} frames, of which only the first is used"
            yield Problem("animation", "warning", message, "use a picture, or remove the row", row, str(path))
        yield from _enlarged(path, facts, row, resize)


def _enlarged(path: Path, facts: FileFacts, row: int, resize: Resize) -> Iterator[Problem]:
    try:
        fit = resize.fit(*facts.size)
    except DataError:
        return  # too small at all, which is said already
    if fit.scale > ENLARGED:
        (width, height), (across, down) = facts.size, fit.size
        message = f"row {row}: {path} is {width}x{height} and is enlarged {fit.scale:.2g} times to {across}x{down}"
        yield Problem("enlarged", "warning", message, "use a larger picture, or a smaller size", row, str(path))


def _same_files(dataset: UnifiedDataset, found: Validation) -> Iterator[Problem]:
    """Yield files that are the same, and rows that are."""
    for kind, pairs, how in (
        ("same bytes", same_bytes(found.files), "has the same bytes as"),
        ("same picture", same_pictures(found.files), "shows the same picture as"),
    ):
        for path, earlier in pairs:
            row, other = (found.rows_of[each][0] + 1 for each in (path, earlier))
            message = f"row {row}: {path} {how} {earlier} (row {other})"
            yield Problem(
                kind, "warning", message, "remove one of the two, unless it is meant to count twice", row, str(path)
            )
    first: dict[str, int] = {}
    for number, row_values in enumerate(dataset.metadata.rows):
        other = first.setdefault(repr(sorted(row_values.items(), key=lambda item: item[0])), number)
        if other != number:
            message = f"row {number + 1} says the same as row {other + 1}"
            yield Problem("same row", "warning", message, "remove one of the two", number + 1)


def _swapped_columns(
    dataset: UnifiedDataset, named: list[dict[str, list[Path]]], found: Validation
) -> Iterator[Problem]:
    """Yield a warning for a column whose every file is another row's target: the two were most likely swapped."""
    target, *others = dataset.data_file_keys
    digests: dict[Any, set[int]] = {}
    for number, cells in enumerate(named):
        for path in cells.get(target, ()):
            if path in found.files:
                digests.setdefault(found.files[path].digest, set()).add(number)
    for key in others:
        entries = [(number, path) for number, cells in enumerate(named) for path in cells.get(key, ())]
        known = [(number, found.files[path].digest) for number, path in entries if path in found.files]
        if len(known) < 2 or len(known) < len(entries):
            continue
        if all(digests.get(digest, set()) - {number} for number, digest in known):
            message = f"every {key} is the {target} of another row ({len(known)} files): are the two columns swapped?"
            hint = f"if they are, exchange them with --column {target}={key},{key}={target}"
            yield Problem("swapped columns", "warning", message, hint)
