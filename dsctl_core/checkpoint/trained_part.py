"""Put a part of a component that was trained alone back into it: a file with the weights of the part alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dsctl_core.checkpoint.stream import ChangeRows, read_tensor, tensor_shapes
from dsctl_core.errors import DsctlError
from dsctl_core.family import Family
from dsctl_core.files.safetensors import file_metadata

if TYPE_CHECKING:
    from torch import Tensor, nn

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TrainedPart:
    """A file with trained weights of `component`: their shapes by the names that they have in the component."""

    path: Path
    component: str
    names: Mapping[str, str]  # name in the component -> name in the file
    shapes: Mapping[str, Shape]

    @classmethod
    def at(cls, path: Path, family: Family, components: Collection[str]) -> TrainedPart:
        """Read the header of the file at `path`, a part of one of the `components` of a model of `family`.

        Raises DsctlError for a file that is damaged, that is a LoRA, that no training has written, and for a part of
        another family or of a component that the model does not have.
        """
        about = file_metadata(path)
        if "format_of_keys" in about:
            raise DsctlError(f"{path} is a LoRA, not a trained part of a model", hint="give it as --lora")
        if about.get("kind") != "weights" or not {"component", "family"} <= about.keys():
            raise DsctlError(
                f"{path} does not say of which component it is a trained part",
                hint="give a file that `dsctl train --trainable-models` has written",
            )
        if about["family"] != family.name:
            raise DsctlError(
                f"{path} is a trained part of {about['family']}, and this model is {family.name}",
                hint="check that it was trained on this model",
            )
        component = about["component"]
        if component not in components:
            raise DsctlError(
                f"{path} is a trained part of the {component}, which this model does not have",
                hint="check that it was trained on this model",
            )
        prefixes = (f"pipe.{component}.", f"{component}.")  # what --remove-prefix-in-ckpt may have left

        def own(name: str) -> str:
            return next((name.removeprefix(each) for each in prefixes if name.startswith(each)), name)

        stored = tensor_shapes(path)
        return cls(path, component, {own(name): name for name in stored}, {own(n): s for n, s in stored.items()})

    def check(self, known: Mapping[str, Shape]) -> None:
        """Raise DsctlError for a weight that is not in `known`, the shapes of the component's, or has another shape."""
        for name, shape in self.shapes.items():
            if name not in known:
                raise DsctlError(
                    f"{self.path} has {name}, which the {self.component} of this model does not have",
                    hint="check that it was trained on this model",
                )
            if known[name] != shape:
                raise DsctlError(
                    f"{self.path}: {name} is {shape}, but {known[name]} in the {self.component} of this model",
                    hint="check that it was trained on this model",
                )

    def put_into(self, model: nn.Module) -> None:
        """Replace the weights of `model`, the component, by those of the file, in the dtypes that they have there."""
        import torch

        state = model.state_dict()
        self.check({name: tuple(tensor.shape) for name, tensor in state.items()})
        with torch.no_grad():
            for name in self.shapes:
                state[name].copy_(self._tensor(name))

    def changes(self) -> dict[str, ChangeRows]:
        """Return the changes that `checkpoint.stream.rewrite` makes to weight files to put the part into them."""

        def change_of(name: str) -> ChangeRows:
            def change(rows: Tensor, first: int) -> Tensor:
                shape = self.shapes[name]
                whole = self._tensor(name).reshape(shape[0] if shape else 1, math.prod(shape[1:]))
                return whole[first : first + len(rows)].float()

            return change

        return {name: change_of(name) for name in self.shapes}

    def _tensor(self, name: str) -> Tensor:
        return read_tensor(self.path, self.names[name])
