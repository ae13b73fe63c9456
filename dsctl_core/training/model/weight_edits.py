"""Edit the weights of components after loading (fused LoRA, fp8), and identify components with their edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dsctl_core.cache.manifest import Recipe
from dsctl_core.checkpoint.identify import identify_weights
from dsctl_core.checkpoint.load import find_component_paths
from dsctl_core.errors import DsctlError
from dsctl_core.families.resolve import ResolvedModel
from dsctl_core.lora.layers import fuse_lora
from dsctl_core.memory.quantize import store_in_fp8
from dsctl_core.pipeline import BasePipeline


@dataclass(frozen=True)
class WeightEdits:
    """What is done to the weights of components after they were loaded."""

    fp8: tuple[str, ...] = ()
    lora: Path | None = None
    lora_on: str = "dit"

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> WeightEdits:
        """Return what was done when a cache was made."""
        model = recipe.model
        lora = model["preset_lora_path"]
        return cls(tuple(model["fp8_models"]), Path(lora) if lora else None, model["preset_lora_model"])

    def notes(self, component: str) -> tuple[list[str], list[Path]]:
        """Return what was done to `component`, in words and in files."""
        lora = self.lora is not None and self.lora_on == component
        words = (["fp8"] if component in self.fp8 else []) + (["lora"] if lora else [])
        return words, [self.lora] if lora and self.lora is not None else []

    def apply(self, pipe: BasePipeline) -> None:
        """Do it to those components of `pipe` that are loaded."""
        if self.lora is not None and self.lora_on in pipe.components:
            fuse_lora(pipe, self.lora, self.lora_on)
        for name in self.fp8:
            if name in pipe.components:
                store_in_fp8(pipe.component(name), pipe.torch_dtype)


def identify(resolved: ResolvedModel, components: Sequence[str], edits: WeightEdits) -> dict[str, str]:
    """Return the identity of each component's weights, with the files of the readers that its inputs come from."""
    side_network = resolved.side_network
    if side_network is not None and side_network.name in components:
        others = [name for name in components if name != side_network.name]
        return {**identify(resolved, others, edits), side_network.name: side_network.identity}
    if not components:
        return {}
    places = find_component_paths(resolved.family, resolved.configs_of(components), resolved.reader_configs)
    found = {}
    for name in components:
        folder = places.components.get(name)
        if folder is None:
            raise DsctlError(
                f"the first stage needs the {name} of {resolved.family.title}, which was not given",
                hint=f"name its weights too: {resolved.family.component(name).folder}/ in a model folder",
            )
        words, files = edits.notes(name)
        for reader in resolved.family.readers:
            if name in reader.components and reader.name in places.readers:
                files += sorted(path for path in places.readers[reader.name].iterdir() if path.is_file())
        found[name] = identify_weights(folder, files, words)
    return found
