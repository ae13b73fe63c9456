"""Apply LoRAs and packed storage to loaded weights, and identify components by their edited weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dsctl_core.cache.manifest import Recipe
from dsctl_core.checkpoint.identify import identify_weights
from dsctl_core.checkpoint.load import find_component_paths
from dsctl_core.errors import DsctlError
from dsctl_core.families.resolve import ResolvedModel
from dsctl_core.files.digest import digest
from dsctl_core.lora.layers import fuse_lora
from dsctl_core.memory.quantize import quantize, store_in_fp8
from dsctl_core.pipeline import BasePipeline

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WeightEdits:
    """The changes to the weights of components after loading."""

    fp8: tuple[str, ...] = ()
    lora: Path | None = None
    lora_on: str = "dit"
    quantized: tuple[tuple[str, str], ...] = ()  # components and the formats that they are held in

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> WeightEdits:
        """Return the edits that a cache was made with."""
        model = recipe.model
        lora = model["preset_lora_path"]
        quantized = tuple((name, form) for name, form in model.get("quantize", {}).items())
        return cls(tuple(model["fp8_models"]), Path(lora) if lora else None, model["preset_lora_model"], quantized)

    @property
    def packed(self) -> tuple[str, ...]:
        """The components that are held in fewer bits: they are loaded into main memory, and packed one by one."""
        return (*self.fp8, *(name for name, _ in self.quantized))

    def holding(self, component: str) -> tuple[str, str]:
        """Return how a packed component is held, for messages, and the option that asks for it."""
        if component in self.fp8:
            return "stored in float8", "--fp8-models"
        return f"held in {dict(self.quantized)[component]}", "--quantize"

    def notes(self, component: str) -> tuple[list[str], list[Path]]:
        """Return the edits of `component` as descriptions, and the files that they come from."""
        lora = self.lora is not None and self.lora_on == component
        words = ["fp8"] if component in self.fp8 else [form for name, form in self.quantized if name == component]
        words += ["lora"] if lora else []
        return words, [self.lora] if lora and self.lora is not None else []

    def apply(self, pipe: BasePipeline) -> None:
        """Apply the edits to the loaded components of `pipe`."""
        if self.lora is not None and self.lora_on in pipe.components:
            fuse_lora(pipe, self.lora, self.lora_on)
        self.pack(pipe, pipe.device)

    def pack(self, pipe: BasePipeline, device: torch.device) -> None:
        """Pack the loaded components that are held in fewer bits on `device`, weight by weight.

        They are kept on the device of `pipe`.
        """
        for name in self.fp8:
            if name in pipe.components:
                store_in_fp8(pipe.component(name), pipe.torch_dtype, device, pipe.device)
        for name, form in self.quantized:
            if name in pipe.components:
                quantize(pipe.component(name), form, pipe.torch_dtype, device, pipe.device)
        for name in self.packed:
            model = pipe.components.get(name)
            if model is not None and any(each.device != pipe.device for each in model.parameters()):
                model.to(pipe.device)


def identify(resolved: ResolvedModel, components: Sequence[str], edits: WeightEdits) -> dict[str, str]:
    """Return an identifier of each component's weights, which covers the files of the readers of its inputs."""
    sides = {each.name: each.identity for each in resolved.side_networks if each.name in components}
    if sides:
        return {**identify(resolved, [name for name in components if name not in sides], edits), **sides}
    if not components:
        return {}
    places = find_component_paths(resolved.family, resolved.configs_of(components), resolved.reader_configs)
    settings = resolved.parts.settings
    found = {}
    for name in components:
        folder = places.components.get(name)
        if folder is None:
            raise DsctlError(
                f"the first stage needs the {name} of {resolved.family.title}, which was not given",
                hint=f"name its weights too: {resolved.family.component(name).folder}/ in a model folder",
            )
        words, files = edits.notes(name)
        words += [digest(dict(settings))] if settings else []
        for reader in resolved.family.readers:
            if name in reader.components and reader.name in places.readers:
                files += sorted(path for path in places.readers[reader.name].iterdir() if path.is_file())
        found[name] = identify_weights(folder, files, words)
    return found
