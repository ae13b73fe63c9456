"""Read LoRA files of any format."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsctl_core.errors import DsctlError
from dsctl_core.family import Family, OriginalNames
from dsctl_core.files.safetensors import PICKLE_SUFFIXES, check_safetensors, read_safetensors
from dsctl_core.lora.formats import LoraFile, decode, format_of
from dsctl_core.lora.names import DENOISER
from dsctl_core.lora.original import from_original

ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def unnamed_layers(component: str, denoisers: Iterable[str]) -> str:
    """Return the denoiser that owns layers without a component prefix in a file for `component`."""
    return component if component in denoisers else DENOISER


def read_lora(
    path: Path,
    component_names: Iterable[str] = (DENOISER,),
    original_names: Iterable[OriginalNames | None] = (),
    unnamed: str = DENOISER,
) -> LoraFile:
    """Read a LoRA file in any known format, or a folder written by peft.

    Layers without a component prefix belong to the component in the header, else to the denoiser `unnamed`.
    `component_names` are the possible prefixes. Layers of the denoiser with names from one of `original_names` are
    renamed to the names of the model. Raises DsctlError for a file that is damaged, that is not a LoRA, or that has a
    layer with only one of its two matrices.
    """
    file = lora_weights(path)
    tensors, metadata = read_safetensors(file)
    config = _peft_config(file, metadata)
    components, flat = decode(path, tensors, component_names, _scale_of(path, config))
    if config.get("use_dora") and any(layer.magnitude is None for of in components.values() for layer in of.values()):
        raise DsctlError(
            f"{file} lacks magnitudes, but its settings have use_dora = True", hint="download or copy it again"
        )
    beside = (file.parent / ADAPTER_CONFIG).is_file() and file.name == ADAPTER_FILE
    lora = LoraFile(path, components, metadata, format_of(tensors, beside), flat)
    lora = with_model_names(lora, original_names)
    if DENOISER in components:
        # Headers of other tools may use this key for something else.
        owner = metadata["component"] if {"component", "family"} <= metadata.keys() else unnamed
        owner = DENOISER if owner in components else owner
        owned = {owner if name == DENOISER else name: layers for name, layers in lora.components.items()}
        lora = replace(lora, components=owned)
    return lora


def with_model_names(lora: LoraFile, layouts: Iterable[OriginalNames | None]) -> LoraFile:
    """Return `lora` with the layers of its denoiser renamed from one of `layouts` to the names of the model.

    Unchanged if no layer has a name of a layout. Raises DsctlError for a layer that the file has under both names.
    """
    layers = lora.components.get(DENOISER)
    if layers is None:
        return lora
    renamed = from_original(layers, layouts, path=lora.path, flat=lora.flat)
    if renamed is layers:
        return lora
    return replace(lora, components={**lora.components, DENOISER: renamed}, flat=False)


def family_in_header(lora: LoraFile) -> str | None:
    """Return the family of models that the header of `lora` names, or None for a file of another tool."""
    return lora.metadata.get("family") if "format_of_keys" in lora.metadata else None


def refuse_other_family(lora: LoraFile, family: Family) -> None:
    """Raise DsctlError if the header of `lora` names a family of models with other layers than `family`."""
    named = family_in_header(lora)
    if named is not None and named not in (family.name, *family.same_layers_as):
        raise DsctlError(
            f"{lora.path} is for another model: its header names {named}, and this model is {family.name}",
            hint="check that the LoRA was trained on this model",
        )


def lora_weights(path: Path) -> Path:
    """Return the safetensors file of the LoRA at `path`; raise DsctlError if it is missing or truncated."""
    if path.is_dir():
        file = path / ADAPTER_FILE
        if not file.is_file():
            pickles = sorted(each.name for each in path.iterdir() if each.suffix in PICKLE_SUFFIXES)
            what = f"only a pickle ({pickles[0]}), which can run code when it is opened" if pickles else "no LoRA"
            raise DsctlError(f"{path} holds {what}", hint=f"give a .safetensors file, or a folder with {ADAPTER_FILE}")
        path = file
    check_safetensors(path)
    return path


def _peft_config(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the peft config of a LoRA, from its adapter_config.json or from the header that diffusers writes."""
    beside = file.parent / ADAPTER_CONFIG
    try:
        if file.name == ADAPTER_FILE and beside.is_file():
            config = json.loads(beside.read_text(encoding="utf-8"))
        else:
            noted = json.loads(metadata.get("lora_adapter_metadata", "{}"))
            config = {key.removeprefix("transformer."): value for key, value in noted.items()}
    except (OSError, ValueError) as error:
        raise DsctlError(f"{beside} cannot be read: {error}", hint="download or copy it again") from error
    if not isinstance(config, dict):
        raise DsctlError(f"{beside} should hold a JSON object", hint="download or copy it again")
    for name, plain in (("bias", "none"), ("modules_to_save", None), ("peft_type", "LORA")):
        if config.get(name, plain) not in (plain, [] if plain is None else plain):
            raise DsctlError(
                f"{file} is no plain LoRA: its settings have {name} = {config[name]!r}", hint="give a plain LoRA"
            )
    return config


def _scale_of(path: Path, config: dict[str, Any]) -> Callable[[str, int], float]:
    """Return the function (layer, rank R) -> scale of a peft config: alpha / R, or with rsLoRA alpha / sqrt(R)."""

    def scale(layer: str, rank: int) -> float:
        alpha = config.get("lora_alpha", rank)
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if re.match(rf"(?:.*\.)?(?:{pattern})$", layer):
                alpha = value
                break
        if not isinstance(alpha, int | float):
            raise DsctlError(f"{path}: its alpha is {alpha!r}, which is no number", hint="download or copy it again")
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

    return scale
