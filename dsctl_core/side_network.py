"""Describe a network that a pipeline has in addition to the components of its family."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import nn

from dsctl_core.units import Inputs, PipelineUnit

# The input with the inputs that control networks read in place of those of the negative prompt.
STEERED_BY = "steered_by"

# (side network, denoiser, inputs of model_fn) -> a context manager that yields the inputs with those that it adds
Control = Callable[[nn.Module, nn.Module, Inputs], AbstractContextManager[Inputs]]


@dataclass(frozen=True)
class SideNetwork:
    """A network in addition to the components of the family, with the units that use it.

    `columns` are the dataset columns that its units read; the units raise an error for a row without them. `control`
    is applied during each call of `model_fn`, and `reads` are the inputs of `model_fn` that it uses; see
    dsctl_core.control. One that `borrows` runs layers of the denoiser as its own.
    """

    name: str
    units: tuple[PipelineUnit, ...]
    columns: tuple[str, ...] = ()
    control: Control | None = None
    reads: tuple[str, ...] = ()
    borrows: bool = False
