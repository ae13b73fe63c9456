"""Declare what each format of packed weights provides: which layers are packed, and what each is to hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dsctl_core.memory.quantize import Unpack

AGAIN = "download it again; its config.json and its weights should come from one place"

# The packed weight, the tensors that go with it by name, and what makes it whole.
Held = tuple["Tensor", Mapping[str, "Tensor"], "Unpack"]


class PackedReader(Protocol):
    """Reads the packed layers of one format."""

    def layers(self, tensors: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return the layers that are packed among the `tensors` of files, by name.

        Of each the names of the tensors that belong to it are given; its weight would be `NAME.weight`.
        """

    def held(self, folder: Path, name: str, layer: nn.Linear, parts: Mapping[str, Tensor], about: str | None) -> Held:
        """Return what `layer` is to hold: the `parts` of the layer `name`.

        `about` is what the metadata of the files in `folder` says of the weight. Raises DsctlError where the parts do
        not fit the layer, or are not read.
        """

    def simulated(self, name: str, layer: nn.Linear, entries: Mapping[str, Any]) -> Held:
        """Return fake tensors of the sizes that `held` returns, for a layer of fake tensors.

        `entries` is what the headers of the files say of its parts.
        """
