"""Define a loss: a callable `(pipe, **inputs)` that declares its task and the inputs it needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import update_wrapper
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dsctl_core.errors import DsctlError
from dsctl_core.units import Inputs

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline

Sides = tuple[Inputs, Inputs, Inputs]


@dataclass(eq=False)
class Loss:
    """The loss of `task`, called with a pipeline and the inputs that its units made.

    `function` returns the loss of each sample of a batch, (B,), and the call their mean. `requires` are the inputs it
    reads beyond those of `model_fn`, `optional` those that it reads where a unit writes them. `columns` are those of
    the dataset's row that it reads itself, `same_in_batch` those of them in which the rows of one batch must agree.
    `read_row` makes inputs of them, those for the negative prompt called `negative_...`; what is wrong with a row is a
    DsctlError that says so without naming the row. `draws_levels` says that it draws a noise level for each sample, so
    that how they are drawn and weighted matters to it.
    """

    function: Callable[..., Tensor]
    task: str
    requires: tuple[str, ...]
    optional: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    same_in_batch: tuple[str, ...] = ()
    read_row: Callable[[Mapping[str, Any]], Inputs] | None = None
    draws_levels: bool = True

    def __post_init__(self) -> None:
        update_wrapper(self, self.function)

    def __call__(self, pipe: BasePipeline, **inputs: Any) -> Tensor:
        """Return the scalar loss of a batch, the mean over its samples."""
        return self.function(pipe, **inputs).mean()

    def by_sample(self, pipe: BasePipeline, **inputs: Any) -> Tensor:
        """Return the loss of each sample of a batch, (B,)."""
        return self.function(pipe, **inputs)

    def inputs_from_row(self, pipe: BasePipeline, row: Inputs, extra_inputs: Sequence[str]) -> Sides:
        """Return the (shared, posi, nega) inputs of one row; what the row says goes over what training would take."""
        theirs = [name for name in extra_inputs if name not in self.columns]
        shared, posi, nega = pipe.row_inputs([row], theirs)
        if self.read_row is None:
            return shared, posi, nega
        try:
            said = self.read_row(row)
        except DsctlError as error:
            raise DsctlError(f"row {row.get('_row', '?')} {error.problem}", hint=error.hint) from error
        negative = {name: value for name, value in said.items() if name.startswith("negative_")}
        mine = {name: value for name, value in said.items() if name not in negative}
        for name in mine:
            if name not in self.requires and name not in inspect.signature(pipe.model_fn).parameters:
                raise DsctlError(
                    f"row {row.get('_row', '?')} has {name}, which {pipe.family.title} does not take",
                    hint="leave that column out",
                )
        return {**shared, **mine}, posi, {**nega, **negative}


def loss(task: str, requires: tuple[str, ...], **about: Any) -> Callable[[Callable[..., Tensor]], Loss]:
    """Make a function the `Loss` of `task`, which is also the name of its file."""

    def make(function: Callable[..., Tensor]) -> Loss:
        return Loss(function, task, requires, **about)

    return make
