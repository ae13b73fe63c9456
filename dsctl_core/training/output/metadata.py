"""Build the metadata that records the origin of a run's files."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.checkpoint.identify import weight_files
from dsctl_core.checkpoint.load import find_component_paths
from dsctl_core.data import UnifiedDataset
from dsctl_core.data.identity import identity_of_dataset
from dsctl_core.families.resolve import ResolvedModel
from dsctl_core.files.digest import weights_identity
from dsctl_core.options import TrainOptions
from dsctl_core.options.lora import LoraOptions
from dsctl_core.training.model.module import split_names
from dsctl_core.version import __version__

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dsctl_core.training.optim.optimizer import OptimizerPlan


def header_metadata(
    options: LoraOptions, resolved: ResolvedModel, source: UnifiedDataset | CachedDataset
) -> dict[str, str]:
    """Return the metadata of all files of a run: the base model, the dataset and the trigger words."""
    about = {"base_model": resolved.label}
    if resolved.preset is not None and resolved.preset.model_id is not None:
        about["base_model_id"] = resolved.preset.model_id
    named = split_names(options.lora_base_model) or [resolved.family.denoisers[0].name]
    found = _weights(resolved, named)
    if named[0] in found:
        about["base_weights"] = found[named[0]]
    if isinstance(source, UnifiedDataset):
        about["dataset"] = identity_of_dataset(source).rows
    if options.trigger_words is not None:
        about["trigger_words"] = options.trigger_words
    for side_network in resolved.side_networks:
        about |= side_network.about()
    return about


def describe_run(
    options: TrainOptions, resolved: ResolvedModel, optimizer: OptimizerPlan, accelerator: Accelerator
) -> dict[str, Any]:
    """Return the content of `run.json`: the resolved options, the model, the versions and the hardware."""
    packages = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")
    device = accelerator.device
    return {
        "command": "train",
        "options": {
            **options.flat_values("json"),
            "learning_rate": optimizer.arguments["lr"],
            "mixed_precision": accelerator.mixed_precision,
        },
        "given": options.given_names(),
        "optimizer": optimizer.described(),
        "family": resolved.family.name,
        "preset": resolved.preset.name if resolved.preset else None,
        "versions": {
            "dsctl": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "hardware": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "processes": accelerator.num_processes,
            "system": platform.platform(),
        },
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def base_weights(options: LoraOptions, resolved: ResolvedModel) -> dict[str, str]:
    """Return an identifier of the base weights of each component, if several components get a LoRA."""
    named = split_names(options.lora_base_model)
    return _weights(resolved, named) if len(named) > 1 else {}


def _weights(resolved: ResolvedModel, components: Sequence[str]) -> dict[str, str]:
    places = find_component_paths(resolved.family, resolved.configs_of(components)).components
    return {name: weights_identity(weight_files(places[name])) for name in components if name in places}
