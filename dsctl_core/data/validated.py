"""Hold what the validation of a dataset found: its problems, and its samples as they are trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from dsctl_core.data.frame_rule import FrameRule
from dsctl_core.data.inspection import FileFacts
from dsctl_core.data.problems import kind_of_problem
from dsctl_core.data.rows import LeftOut
from dsctl_core.data.sizes import Resize
from dsctl_core.errors import DsctlError, for_people
from dsctl_core.readable import counted

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Problem:
    """One problem: of row `row` (counting from 1), or of the whole dataset (None).

    `dataset` is the name of the dataset, of several.
    """

    kind: str
    level: Level
    message: str
    hint: str | None
    row: int | None = None
    file: str | None = None
    dataset: str | None = None

    def __post_init__(self) -> None:
        for name in ("message", "hint", "file"):
            text = getattr(self, name)
            object.__setattr__(self, name, None if text is None else for_people(text))


@dataclass
class Sample:
    """A row with its prompts and the sizes of its usable files after resizing: (width, height[, frames]).

    `keys` are the columns of the sizes. `clips` is how many clips the video of the row gives, each of which is a sample
    of training.
    """

    number: int
    prompts: tuple[str, ...]
    sizes: list[tuple[int, ...]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    clips: int = 1


@dataclass
class Validation:
    """The result of `validate_dataset`; it is filled while the dataset is checked."""

    rows: int
    layout: str
    problems: list[Problem]
    samples: list[Sample]
    files: dict[Path, FileFacts]
    rows_of: dict[Path, list[int]]  # the rows that name a file, from 0
    left_out: LeftOut = LeftOut()
    notes: tuple[str, ...] = ()  # what of the dataset is not used, for people

    def count(self, level: Level) -> int:
        """Return the number of problems of a level."""
        return sum(problem.level == level for problem in self.problems)


@dataclass(frozen=True)
class Checks:
    """The settings of a validation: the resizing, the frames of videos (None: images only), the worker processes."""

    resize: Resize
    frames: FrameRule | None = None
    workers: int | None = None


def unreadable_dataset(error: DsctlError) -> Validation:
    """Return the validation of a dataset whose metadata cannot be read: `error` is its only problem."""
    problem = Problem(kind_of_problem(error), "error", error.problem, error.hint)
    return Validation(0, "", [problem], [], {}, {})


def joined(found: Mapping[str, Validation]) -> Validation:
    """Return the validations of several datasets, by name, as one, in which the numbers of samples go on.

    The rows of problems count within their datasets.
    """
    layout = f"mixture of {counted(len(found), 'dataset')}"
    whole = Validation(sum(each.rows for each in found.values()), layout, [], [], {}, {})
    suffixes: Counter[str] = Counter()
    first = 0
    for name, each in found.items():
        whole.problems += [replace(p, dataset=name, message=f"{name}: {p.message}") for p in each.problems]
        whole.samples += [replace(sample, number=first + sample.number) for sample in each.samples]
        whole.files |= each.files
        for path, rows in each.rows_of.items():
            whole.rows_of.setdefault(path, []).extend(first + row for row in rows)
        whole.notes += (
            f"{name}: {counted(each.rows, 'row')} in a {each.layout}" if each.layout else f"{name}: no rows",
        )
        whole.notes += tuple(f"{name}: {note}" for note in each.notes)
        suffixes.update(dict(each.left_out.suffixes))
        first += each.rows
    whole.left_out = LeftOut(tuple(suffixes.most_common()))
    return whole
