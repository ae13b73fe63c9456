"""Digest the files that a run's options name by path, so that resuming compares what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsctl_core.checkpoint.load import find_component_paths
from dsctl_core.errors import DsctlError
from dsctl_core.families.resolve import ResolvedModel
from dsctl_core.files.digest import digest, digest_file, weights_identity
from dsctl_core.lora.files import ADAPTER_CONFIG, ADAPTER_FILE, lora_weights
from dsctl_core.options import TrainOptions
from dsctl_core.options.template import MODEL as TEMPLATE


def option_contents(options: TrainOptions, resolved: ResolvedModel) -> dict[str, Any]:
    """Return for each option that names LoRAs or a template what is in the files, in place of their paths."""
    adapter = options.adapter
    sides = {each.name: each.identity.removeprefix("sha256:") for each in resolved.side_networks}
    named = {"preset_lora_path": adapter.preset_lora_path, "lora_checkpoint": adapter.lora_checkpoint}
    return {
        **{name: None if path is None else lora_content(path) for name, path in named.items()},
        "lora": [[lora_content(each.path), each.scale] for each in adapter.lora],
        "template": sides.pop(TEMPLATE, None),
        "controlnet": [
            [identity, each.scale] for identity, each in zip(sides.values(), options.controls.controlnet, strict=True)
        ],
    }


def lora_content(path: Path) -> str:
    """Return a digest of a LoRA: of its weights and, for a folder that peft wrote, of its config, which scales them."""
    weights = lora_weights(path)
    config = weights.with_name(ADAPTER_CONFIG)
    scales = digest_file(config) if weights.name == ADAPTER_FILE and config.is_file() else None
    return digest([weights_identity([weights]), scales])


def model_files(resolved: ResolvedModel, components: Sequence[str] | None, *, readers: bool) -> str:
    """Return a digest of the files of a model beside its weights: of the configs of `components` and its schedule.

    With `readers`, also of its tokenizers and processors. What is not on the disk is left out: loading raises an error
    if it is needed. `components` None are all of them.
    """
    found: dict[str, Any] = {}
    for name in [each.name for each in resolved.family.components] if components is None else components:
        try:
            places = find_component_paths(resolved.family, resolved.configs_of([name]))
        except DsctlError:
            continue
        config = places.components[name] / "config.json" if name in places.components else None
        if config is not None and config.is_file():
            found[name] = digest_file(config)
        found |= {} if places.schedule is None else {"schedule": digest_file(places.schedule)}
        found |= {} if places.index is None else {"index": places.index}
    return digest([found, _reader_files(resolved) if readers else None])


def _reader_files(resolved: ResolvedModel) -> dict[str, Any]:
    try:
        folders = find_component_paths(resolved.family, resolved.model_configs, resolved.reader_configs).readers
    except DsctlError:
        return {}
    return {
        name: [[file.name, digest_file(file)] for file in sorted(folder.iterdir()) if file.is_file()]
        for name, folder in folders.items()
    }
