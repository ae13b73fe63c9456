"""What the files of a run say about where they come from."""

from __future__ import annotations

from collections.abc import Sequence

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.checkpoint.identify import weight_files
from dsctl_core.checkpoint.load import find_component_paths
from dsctl_core.data import UnifiedDataset
from dsctl_core.families.resolve import ResolvedModel
from dsctl_core.files.digest import weights_identity
from dsctl_core.lora.about import dataset_identity
from dsctl_core.options import TrainOptions
from dsctl_core.training.model.module import split_names


def header_metadata(
    options: TrainOptions, resolved: ResolvedModel, source: UnifiedDataset | CachedDataset
) -> dict[str, str]:
    """Return what is the same for all files of a run: the base, the dataset and the trigger words."""
    about = {"base_model": resolved.label}
    if resolved.preset is not None and resolved.preset.model_id is not None:
        about["base_model_id"] = resolved.preset.model_id
    named = split_names(options.lora_base_model) or [resolved.family.denoisers[0].name]
    found = _weights(resolved, named)
    if named[0] in found:
        about["base_weights"] = found[named[0]]
    if isinstance(source, UnifiedDataset):
        about["dataset"] = dataset_identity(source.metadata.rows, source.base_path)
    if options.trigger_words is not None:
        about["trigger_words"] = options.trigger_words
    if resolved.side_network is not None:
        about |= resolved.side_network.about()
    return about


def base_weights(options: TrainOptions, resolved: ResolvedModel) -> dict[str, str]:
    """Return, where several components get a LoRA, what tells the weights of each of them."""
    named = split_names(options.lora_base_model)
    return _weights(resolved, named) if len(named) > 1 else {}


def _weights(resolved: ResolvedModel, components: Sequence[str]) -> dict[str, str]:
    places = find_component_paths(resolved.family, resolved.configs_of(components)).components
    return {name: weights_identity(weight_files(places[name])) for name in components if name in places}
