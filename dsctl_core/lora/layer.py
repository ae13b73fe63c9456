"""Define the update of one layer: what every kind of network can do, and the low-rank product of a LoRA.

LoKr and LoHa are in dsctl_core.lora.lycoris.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor

Network = Literal["lora", "lokr", "loha"]


class Update(ABC):
    """The update of one layer: `scale` times a matrix (out, in) that is made of smaller ones.

    With a `magnitude` (out,) it is decomposed as in a DoRA; see dsctl_core.lora.dora.
    """

    network: ClassVar[Network]
    scale: float
    magnitude: Tensor | None

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """The shape (out, in) of the weight that this updates."""

    @property
    @abstractmethod
    def rank(self) -> int | None:
        """The rank of the small matrices, which alpha is divided by; None if they are whole."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """Return the matrix (out, in) without the scale, in the dtype of its parts and with their gradients."""

    @abstractmethod
    def times(self, columns: Tensor) -> Tensor:
        """Return `matrix() @ columns`, (out, n), for a few `columns` (in, n), without forming the matrix."""

    @abstractmethod
    def parts(self) -> dict[str, Tensor]:
        """Return the small matrices by their names in a file, in a fixed order; without the magnitude."""

    @abstractmethod
    def mapped(self, change: Callable[[Tensor], Tensor]) -> Update:
        """Return this with each tensor replaced by what `change` returns for it."""

    @abstractmethod
    def with_values(self, *, scale: float, magnitude: Tensor | None) -> Update:
        """Return this with another scale and magnitude."""

    @abstractmethod
    def rows(self, first: int, last: int) -> Update:
        """Return this for the rows `first` (included) to `last` (excluded) of the weight."""

    @abstractmethod
    def rolled(self, shift: int) -> Update:
        """Return this with the rows moved down by `shift`, around the end; `shift` is half of the rows."""


@dataclass(frozen=True)
class LoraLayer(Update):
    """The update of a LoRA: scale * up @ down, with down (R, in) and up (out, R).

    With a `magnitude` (out,) the layer is a DoRA; see dsctl_core.lora.dora.
    """

    network: ClassVar[Network] = "lora"

    down: Tensor
    up: Tensor
    scale: float = 1.0
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """The rank R of the update."""
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (out, in) of the weight that this layer updates."""
        return self.up.shape[0], self.down.shape[1]

    def matrix(self) -> Tensor:
        """Return `up @ down`, (out, in)."""
        return self.up @ self.down

    def times(self, columns: Tensor) -> Tensor:
        """Return `up @ (down @ columns)`."""
        return self.up @ (self.down @ columns)

    def parts(self) -> dict[str, Tensor]:
        """Return "down" and "up", which each format calls differently."""
        return {"down": self.down, "up": self.up}

    def mapped(self, change: Callable[[Tensor], Tensor]) -> LoraLayer:
        """Return this with each tensor changed."""
        return replace(self, down=change(self.down), up=change(self.up), magnitude=changed(self.magnitude, change))

    def with_values(self, *, scale: float, magnitude: Tensor | None) -> LoraLayer:
        """Return this with another scale and magnitude."""
        return replace(self, scale=scale, magnitude=magnitude)

    def rows(self, first: int, last: int) -> LoraLayer:
        """Return this for a range of rows."""
        return replace(self, up=self.up[first:last], magnitude=changed(self.magnitude, lambda t: t[first:last]))

    def rolled(self, shift: int) -> LoraLayer:
        """Return this with the rows in the order of `torch.roll`."""
        return replace(self, up=self.up.roll(shift, dims=0), magnitude=changed(self.magnitude, lambda t: t.roll(shift)))


def changed(tensor: Tensor | None, change: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Return what `change` makes of `tensor`, such as a magnitude; None for none."""
    return None if tensor is None else change(tensor)
