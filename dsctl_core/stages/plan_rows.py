"""Rows of a dataset before anything is decoded: which entries they make, and what has to be encoded for them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dsctl_core.cache.codec import encode, is_plain
from dsctl_core.cache.manifest import Entry, Recipe
from dsctl_core.data import UnifiedDataset
from dsctl_core.data.frame_folder import files_of
from dsctl_core.data.looking import look_at_files
from dsctl_core.data.operators import require_file
from dsctl_core.errors import DsctlError
from dsctl_core.files.digest import digest, digest_file, digest_files, digest_stream
from dsctl_core.losses import find_loss
from dsctl_core.losses.contract import Sides
from dsctl_core.pipeline import BasePipeline
from dsctl_core.progress import Progress
from dsctl_core.remote import anywhere
from dsctl_core.stages.sample import SIDES, Sample, pick
from dsctl_core.stages.split import EncodeGroup, Stages, run

LONGEST_PATH = 1000  # characters
RAW = "as it is"  # the group of what the second stage reads from the dataset itself, such as a picture


class Unread(Image.Image):
    """A picture of which only the size and the file's hash are known: units are planned with it, never run."""

    def __init__(self, size: tuple[int, int], content: str) -> None:
        super().__init__()
        self._pixels, self.content = size, content

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), from the file's header."""
        return self._pixels


@dataclass
class Job:
    """One input of one group, to be encoded once for all rows that have it."""

    key: str
    row: int
    sample: Sample  # the inputs; pictures in it may be unread
    rows: list[int] = field(default_factory=list)  # all rows that have it


@dataclass
class Plan:
    """The cache entries of a dataset, the jobs of each group, and the rows that cannot be used."""

    entries: list[Entry] = field(default_factory=list)
    jobs: dict[int, dict[str, Job]] = field(default_factory=dict)  # number of the group -> key -> job
    bad: dict[int, DsctlError] = field(default_factory=dict)

    def drop(self, row: int, error: DsctlError) -> None:
        """Note that a row cannot be used."""
        self.bad.setdefault(row, error)


def plan_rows(dataset: UnifiedDataset, pipe: BasePipeline, stages: Stages, recipe: Recipe, progress: Progress) -> Plan:
    """Work out the entries of `dataset` from its table, the bytes of its files and the headers of its pictures.

    `pipe` needs no components. A row that is wrong goes into `bad`, with the error.
    """
    plan = Plan(jobs={number: {} for number in range(len(stages.groups) + 1)})
    look_at_files(dataset, progress, whole=True)
    files = {row: _files_of(dataset, row, plan) for row in dataset.rows_in_use}
    paths: Iterable[Path] = (path for found in files.values() for path in found.values())
    if dataset.takes_folders:
        paths = (file for path in paths for file in files_of(path))
    contents = _digests(dataset, paths)
    checks = stages.checks
    about = {"dtype": recipe.dtype, "family": recipe.family}
    progress.start("Looking at the dataset", len(files), unit="row")
    for row, found in files.items():
        if row not in plan.bad:
            try:
                entry_of(
                    row, _unread_row(dataset, row, found, contents, recipe), pipe, stages, checks, about, recipe, plan
                )
            except DsctlError as error:
                plan.drop(row, error)
        progress.advance()
    progress.finish()
    by_row = {entry.row: entry for entry in plan.entries}
    plan.entries = [by_row[row] for row in dataset.numbers if row in by_row]  # a row that is repeated several times
    return plan


def _digests(dataset: UnifiedDataset, paths: Iterable[Path]) -> dict[Path, str]:
    """Return the SHA-256 of the bytes of each file; those that `look_at_files` has hashed are not opened again."""
    wanted, found = list(dict.fromkeys(paths)), dict[Path, str]()
    for part in dataset.parts:
        records = {} if part.known is None else part.known.records([str(path) for path in wanted])
        found |= {Path(path): each.whole.hex() for path, each in records.items() if each.whole is not None}
    return {**found, **anywhere.digests((path for path in wanted if path not in found), digest_files, digest_stream)}


def _is_known(dataset: UnifiedDataset, path: Path) -> bool:
    """Return whether `look_at_files` has found the file at `path` to be whole."""
    return any(part.known is not None and part.known.has(str(path)) for part in dataset.parts)


def entry_of(
    row: int,
    values: dict[str, Any],
    pipe: BasePipeline,
    stages: Stages,
    checks: Sequence[Any],
    about: dict[str, Any],
    recipe: Recipe,
    plan: Plan,
) -> None:
    """Add the entry of one row to `plan`, and its jobs where no row before it has the same."""
    sides = find_loss(recipe.task).inputs_from_row(pipe, values, recipe.extra_inputs)
    run(checks, pipe, sides)
    raw = pick(sides, stages.raw)
    kept = {name: encode(value, []) for name, value in raw.items() if is_plain(value)}
    parts = []
    for number, group in enumerate(stages.groups):
        parts.append(_add_job(plan, number, _described(group, recipe), about, row, pick(sides, group.reads)))
    pictures = {name: value for name, value in raw.items() if not is_plain(value)}
    if pictures:
        parts.append(_add_job(plan, len(stages.groups), {"lane": RAW}, about, row, pictures))
    plan.entries.append(Entry(row, digest([kept, *parts]), kept, tuple(parts)))


def _described(group: EncodeGroup, recipe: Recipe) -> dict[str, Any]:
    return {
        "units": [[type(unit).__name__, unit.version] for unit in group.units],
        "keeps": sorted(group.keeps),
        "components": {name: recipe.components[name] for name in group.components},
    }


def _add_job(plan: Plan, group: int, what: dict[str, Any], about: dict[str, Any], row: int, sample: Sample) -> str:
    key = digest([what, about, {name: fingerprint(value) for name, value in sample.items()}])
    plan.jobs[group].setdefault(key, Job(key, row, sample)).rows.append(row)
    return key


def fingerprint(value: Any) -> Any:
    """Return a JSON value that is another for every other `value`; of an unread picture, by its file."""
    if isinstance(value, Unread):
        return {"file": value.content, "size": list(value.size)}
    if isinstance(value, Image.Image):
        return {"picture": hashlib.sha256(value.tobytes()).hexdigest(), "mode": value.mode, "size": list(value.size)}
    if isinstance(value, Tensor):
        bytes_of = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return {"tensor": hashlib.sha256(bytes_of).hexdigest(), "dtype": str(value.dtype), "shape": list(value.shape)}
    if isinstance(value, list | tuple):
        return [fingerprint(entry) for entry in value]
    if isinstance(value, dict):
        return {str(name): _in_a_dict(entry) for name, entry in value.items()}
    return encode(value, [])


def _in_a_dict(value: Any) -> Any:
    """Return `fingerprint`; of text that names a file with the file's contents: whoever reads it may open that."""
    if isinstance(value, str) and len(value) < LONGEST_PATH and Path(value).is_file():
        return {"path": value, "file": digest_file(Path(value))}
    return fingerprint(value)


def has_pictures(value: Any, kind: type[Image.Image] = Unread) -> bool:
    """Return whether there is a picture of `kind` in `value`; by default one that is unread."""
    if isinstance(value, list | tuple):
        return any(has_pictures(entry, kind) for entry in value)
    if isinstance(value, dict):
        return any(has_pictures(entry, kind) for entry in value.values())
    return isinstance(value, kind)


def read_row(dataset: UnifiedDataset, pipe: BasePipeline, task: str, extra_inputs: Sequence[str], row: int) -> Sides:
    """Return the (shared, posi, nega) inputs of row `row` with its pictures decoded."""
    return find_loss(task).inputs_from_row(pipe, dataset.row(row), extra_inputs)


def inputs_of_job(job: Job, sides: Sides) -> Sample:
    """Return the inputs of a job, of those of its row."""
    found = dict(zip(SIDES, sides, strict=True))
    return {name: found[name.partition(".")[0]][name.partition(".")[2]] for name in job.sample}


def _files_of(dataset: UnifiedDataset, row: int, plan: Plan) -> dict[tuple[str, int], Path]:
    """Return the files that a row names, by column and place in its cell."""
    found: dict[tuple[str, int], Path] = {}
    for key in dataset.data_file_keys:
        try:
            for place, path in enumerate(dataset.files(row, key)):
                if not _is_known(dataset, path):
                    with dataset.cell_errors(row, key):
                        for file in files_of(path) if dataset.takes_folders else [path]:
                            require_file(file)
                found[key, place] = path
        except DsctlError as error:
            plan.drop(row, error)
            return {}
    return found


def _unread(size: tuple[int, ...], content: str) -> Unread | list[Unread]:
    """Return a picture of (width, height), or the frames of a clip of (width, height, frames), unread."""
    picture = Unread((size[0], size[1]), content)
    return picture if len(size) == 2 else [picture] * size[2]


def _content(path: Path, contents: dict[Path, str]) -> Any:
    """Return the hash of a file, or those of the pictures in a folder of frames, in order."""
    return contents[path] if path in contents else [contents[file] for file in files_of(path)]


def _unread_row(
    dataset: UnifiedDataset,
    row: int,
    files: dict[tuple[str, int], Path],
    contents: dict[Path, str],
    recipe: Recipe,
) -> dict[str, Any]:
    """Return a row as the dataset would give it, its pictures unread."""
    values = {**dataset.metadata.rows[row], "_row": row, **dataset.chosen_texts(row, 0)}
    processing = recipe.processing_of(dataset.table_of(row))
    for key in dataset.data_file_keys:
        if dataset.is_empty(row, key):
            values[key] = None
            continue
        sizes = dataset.preview(row, key)
        several = isinstance(sizes, list)
        made_from = [f"as {key}"] if dataset.is_copy(row, key) else []  # the alpha channel of the picture, for example
        made = []
        for place, size in enumerate(sizes if several else [sizes]):
            if isinstance(size, tuple):
                path = files[key, place]
                frames = dataset.chosen_frames(row, path)
                made.append(_unread(size, digest([_content(path, contents), processing, *made_from, *frames])))
        if not made:  # an operator that cannot tell without doing it
            return dataset.row(row)
        values[key] = made if several else made[0]
    return values
