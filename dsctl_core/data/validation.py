"""Validate a dataset: check every row and decode every file, on all cores and without torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from dsctl_core.data.clip_rows import require_one_clip
from dsctl_core.data.dataset import UnifiedDataset
from dsctl_core.data.decoded import keep, remembered, states_of
from dsctl_core.data.duplicates import same_bytes, same_pictures
from dsctl_core.data.frame_folder import RATE_COLUMN, frame_rate, frame_times
from dsctl_core.data.inspection import FileFacts
from dsctl_core.data.inspection_processes import cores, inspect_in_processes
from dsctl_core.data.known_files import KnownFiles
from dsctl_core.data.masks import BLACK_MASK, MASK, require_fitting, require_same_shape
from dsctl_core.data.pair_checks import odd_references, swapped_columns
from dsctl_core.data.problems import DataError, kind_of_problem
from dsctl_core.data.row_texts import TEXT_COLUMNS
from dsctl_core.data.sizes import Resize
from dsctl_core.data.validated import Checks, Problem, Sample, Validation
from dsctl_core.errors import DsctlError
from dsctl_core.progress import NoProgress, Progress
from dsctl_core.readable import counted

ENLARGED = 1.05  # images that are scaled by more than this get a warning
CHUNK = 16  # files per task of a worker process


def validate_dataset(dataset: UnifiedDataset, checks: Checks, progress: Progress | None = None) -> Validation:
    """Check every row of a dataset and decode every file. Problems are collected, not raised."""
    metadata = dataset.metadata
    notes = tuple(dataset.notes()[1:])
    validation = Validation(len(metadata.rows), metadata.layout, [], [], {}, {}, metadata.left_out, notes)
    try:
        dataset.require_prompts()
    except DsctlError as error:
        validation.problems.append(Problem(kind_of_problem(error), "error", error.problem, error.hint))
    files_by_row = [_files_of_row(dataset, number, validation) for number in range(validation.rows)]
    paths = list(dict.fromkeys(path for cells in files_by_row for entries in cells.values() for path in entries))
    errors: dict[Path, DataError] = {}
    for path, inspected in _inspect_files(paths, checks, progress or NoProgress(), dataset.known):
        if isinstance(inspected, FileFacts):
            validation.files[path] = inspected
        else:
            errors[path] = inspected
    for number, cells in enumerate(files_by_row):
        validation.samples.append(_check_row(dataset, number, cells, errors, checks, validation))
    converted = sum(facts.profile == "converted" for facts in validation.files.values())
    if converted:
        validation.notes = (
            *notes,
            f"{counted(converted, 'file is', 'files are')} converted from a colour profile to sRGB",
        )
    validation.notes += _notes_of_clips(validation, checks)
    validation.problems += _captions_without_pictures(dataset)
    validation.problems += _warnings_of_files(validation, checks.resize, _of_keys(files_by_row, dataset.whole_keys))
    validation.problems += _same_files(dataset, files_by_row, validation)
    validation.problems += _pair_faults(dataset, files_by_row, validation)
    validation.problems.sort(key=lambda problem: (problem.row is not None, problem.row or 0))
    return validation


def _notes_of_clips(validation: Validation, checks: Checks) -> tuple[str, ...]:
    """Return lines about the videos: which frames are taken, how many clips they give, and how many are folders."""
    videos = [facts for facts in validation.files.values() if facts.is_video]
    if checks.frames is None or not videos:
        return ()
    notes = [f"frames  {checks.frames.described()}"]
    if checks.frames.extraction == "every":
        count = sum(sample.clips for sample in validation.samples if sample.sizes)
        notes.append(f"clips  {count} of {counted(len(videos), 'video')}")
    if folders := sum(facts.is_folder for facts in videos):
        notes.append(
            f"{folders} of {counted(len(videos), 'video')} {'are folders' if folders > 1 else 'is a folder'} of frames"
        )
    return tuple(notes)


def _files_of_row(dataset: UnifiedDataset, number: int, validation: Validation) -> dict[str, list[Path]]:
    """Return the paths in each file column of a row, and add a problem for each cell without a valid path."""
    cells: dict[str, list[Path]] = {}
    for key in dataset.data_file_keys:
        try:
            cells[key] = dataset.files(number, key)
        except DsctlError as error:
            _add(validation, number, error)
        for path in cells.get(key, ()):
            validation.rows_of.setdefault(path, []).append(number)
    return cells


def _check_row(
    dataset: UnifiedDataset,
    number: int,
    cells: dict[str, list[Path]],
    errors: dict[Path, DataError],
    checks: Checks,
    validation: Validation,
) -> Sample:
    """Check the prompt and the inspected files of a row, and add its problems to `validation`.

    Args:
        dataset: The dataset.
        number: The row, from 0.
        cells: The paths in each file column of the row.
        errors: The files that cannot be used, with their errors.
        checks: The settings of the validation.
        validation: The result so far.
    """
    sample = Sample(number, ())
    if all(key in dataset.metadata.columns for key in TEXT_COLUMNS):
        try:
            sample.prompts = dataset.prompts(number)
        except DsctlError as error:
            _add(validation, number, error)
    for key, paths in cells.items():
        for path in paths:
            try:
                with dataset.cell_errors(number, key):
                    if path in errors:
                        raise errors[path]
                    facts, rate = validation.files[path], dataset.metadata.rows.cell(number, RATE_COLUMN)
                    if key == MASK and facts.black:
                        raise DataError(f"{path} is a black mask", hint=BLACK_MASK)
                    if key in dataset.whole_keys:
                        _require_picture(path, facts)
                        continue
                    size, clips = _size(path, facts, checks, rate)
                    if key == dataset.data_file_keys[0]:
                        sample.clips = clips
                    if key not in dataset.along_keys:
                        sample.sizes.append(size)
                        sample.keys.append(key)
                    elif target := [each for each in cells[dataset.data_file_keys[0]] if each in validation.files]:
                        require_same_shape(validation.files[target[0]].size, validation.files[path].size, key)
                        require_fitting(sample.sizes[0], size, key, still=dataset.along_keys[key])
            except DsctlError as error:
                _add(validation, number, error, path)
    for key in cells:
        try:
            with dataset.cell_errors(number, key):
                if key in dataset.frame_keys and cells[key]:
                    require_one_clip(key, sample.clips)
        except DsctlError as error:
            _add(validation, number, error)
    decoded = {key: [path for path in paths if path in validation.files] for key, paths in cells.items()}
    try:
        dataset.require_companions(number)
        dataset.require_aligned(number, {key: [validation.files[p].size for p in own] for key, own in decoded.items()})
    except DsctlError as error:
        _add(validation, number, error)
    return sample


def _require_picture(path: Path, facts: FileFacts) -> None:
    if facts.is_video and facts.format != "GIF":  # of which the first frame is read
        raise DataError(f"{path} is a video, not a picture", hint="give a picture", kind="not a picture")


def _size(path: Path, facts: FileFacts, checks: Checks, rate: Any) -> tuple[tuple[int, ...], int]:
    """Return the size of a file after resizing, and how many clips it gives.

    The size is (width, height), or (width, height, frames) for a video. `rate` is the cell with the frame rate of a
    folder.
    """
    try:
        size = checks.resize.target_size(*facts.size)
        if not facts.is_video or checks.frames is None:
            return (*size,), 1
        times: Sequence[float] = facts.times
        end = facts.end
        if facts.is_folder:
            times, end = frame_times(facts.frames, frame_rate(rate, checks.frames.fps))
        return (*size, len(checks.frames.pick(times, end))), checks.frames.clips(times, end)
    except DataError as error:
        raise DataError(f"{path}: {error.problem}", hint=error.hint, kind=error.kind) from error


def _inspect_files(
    paths: list[Path], checks: Checks, progress: Progress, known: KnownFiles | None
) -> Iterator[tuple[Path, FileFacts | DataError]]:
    """Inspect files on all cores and yield (path, facts or error), in the order of `paths`.

    Those that `known` remembers to have been decoded, and that are unchanged, are not opened.
    """
    progress.start("Decoding", len(paths), unit="file")
    done = {} if known is None else dict(remembered(known, paths, checks.frames is not None))
    progress.advance(len(done))
    inspected = _decode([path for path in paths if path not in done], checks, progress, known)
    try:
        for path in paths:
            yield (path, done[path]) if path in done else next(inspected)
    finally:
        progress.finish()


def _decode(
    paths: list[Path], checks: Checks, progress: Progress, known: KnownFiles | None
) -> Iterator[tuple[Path, FileFacts | DataError]]:
    videos = checks.frames is not None
    workers = checks.workers or cores()
    chunks = [paths[first : first + CHUNK] for first in range(0, len(paths), CHUNK)]
    states = {} if known is None else states_of(paths)
    for chunk, facts in zip(chunks, inspect_in_processes(chunks, videos, workers, len(paths)), strict=True):
        found = dict(zip(chunk, facts, strict=True))
        if known is not None:
            keep(known, states, found)
        progress.advance(len(chunk))
        yield from found.items()


def _add(validation: Validation, number: int, error: DsctlError, path: Path | None = None) -> None:
    file = str(path) if path else None
    validation.problems.append(Problem(kind_of_problem(error), "error", error.problem, error.hint, number + 1, file))


def _captions_without_pictures(dataset: UnifiedDataset) -> Iterator[Problem]:
    for name in dataset.metadata.left_out.captions:
        path = dataset.base_path / name
        message = f"{path} is the caption of no picture or video"
        hint = "add the file that it belongs to, or remove it"
        yield Problem("caption alone", "warning", message, hint, None, str(path))


def _of_keys(files_by_row: list[dict[str, list[Path]]], keys: Collection[str]) -> set[Path]:
    """Return the files in the columns `keys`."""
    return {path for cells in files_by_row for key in keys for path in cells.get(key, ())}


def _warnings_of_files(validation: Validation, resize: Resize, whole: Collection[Path]) -> Iterator[Problem]:
    """Yield warnings about single files, each file once: wrong suffix, profile, animation, enlarged image.

    The files in `whole` are not resized.
    """
    for path, facts in validation.files.items():
        row = validation.rows_of[path][0] + 1
        jpegs = {"JPEG", "MPO"}  # some cameras write JPEGs with a second picture in them
        expected = facts.expected_format
        if expected is not None and facts.format != expected and not {facts.format, expected} <= jpegs:
            message = f"row {row}: {path} is a {facts.format}, but its name says {expected}"
            yield Problem("wrong suffix", "warning", message, "rename it with the right suffix", row, str(path))
        if facts.profile == "damaged":
            message = f"row {row}: {path} has a damaged colour profile; its colours are read as sRGB"
            yield Problem("colour profile", "warning", message, "save it again with its profile", row, str(path))
        if facts.frames > 1 and not facts.is_video and facts.format != "MPO":
            message = f"row {row}: {path} has {facts.frames} frames, of which only the first is used"
            yield Problem("animation", "warning", message, "use a picture, or remove the row", row, str(path))
        if path not in whole:
            yield from _enlarged(path, facts, row, resize)


def _enlarged(path: Path, facts: FileFacts, row: int, resize: Resize) -> Iterator[Problem]:
    try:
        fit = resize.fit(*facts.size)
    except DataError:
        return  # too small at all: reported already
    if fit.scale > ENLARGED:
        (width, height), (across, down) = facts.size, fit.size
        message = f"row {row}: {path} is {width}x{height} and is enlarged {fit.scale:.2g} times to {across}x{down}"
        hint = f"use a larger {'video' if facts.is_video else 'picture'}, or a smaller size"
        yield Problem("enlarged", "warning", message, hint, row, str(path))


def _pair_faults(
    dataset: UnifiedDataset, files_by_row: list[dict[str, list[Path]]], validation: Validation
) -> Iterator[Problem]:
    """Yield warnings about targets and references: equal, of another aspect ratio, or in each other's column.

    The reference of a row with layers can be the picture that they make, and has its size in any case.
    """
    target, layered = dataset.data_file_keys[0], dataset.list_keys & set(dataset.data_file_keys)
    for fault in (
        *(() if layered else odd_references(target, files_by_row, validation.files)),
        *swapped_columns(dataset.data_file_keys, files_by_row, validation.files),
    ):
        row = None if fault.number is None else fault.number + 1
        file = None if fault.file is None else str(fault.file)
        yield Problem(fault.kind, "warning", fault.message, fault.hint, row, file)


def _same_files(
    dataset: UnifiedDataset, files_by_row: list[dict[str, list[Path]]], validation: Validation
) -> Iterator[Problem]:
    """Yield warnings about duplicate files and duplicate rows; files of one row are compared by `_pair_faults`.

    Masks, and pictures that keep their own size, are often equal, and are left out.
    """
    often = {key for key, still in dataset.along_keys.items() if still} | dataset.whole_keys
    left_out = _of_keys(files_by_row, often)
    files = {path: facts for path, facts in validation.files.items() if path not in left_out}
    for kind, pairs, relation in (
        ("same bytes", same_bytes(files), "has the same bytes as"),
        ("same picture", same_pictures(files), "shows the same picture as"),
    ):
        for path, earlier in pairs:
            if not set(validation.rows_of[path]).isdisjoint(validation.rows_of[earlier]):
                continue
            row, other = (validation.rows_of[each][0] + 1 for each in (path, earlier))
            message = f"row {row}: {path} {relation} {earlier} (row {other})"
            yield Problem(
                kind, "warning", message, "remove one of the two, unless it is meant to count twice", row, str(path)
            )
    first: dict[str, int] = {}
    for number, row_values in enumerate(dataset.metadata.rows):
        other = first.setdefault(repr(sorted(row_values.items(), key=lambda item: item[0])), number)
        if other != number:
            message = f"row {number + 1} is the same as row {other + 1}"
            yield Problem("same row", "warning", message, "remove one of the two", number + 1)
