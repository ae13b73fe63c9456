"""Read LoRA files of any format."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dsctl_core.errors import DsctlError
from dsctl_core.family import Family, OriginalNames
from dsctl_core.files.foreign import is_pickle
from dsctl_core.files.safetensors import check_safetensors, read_safetensors
from dsctl_core.lora.check import check_tensors
from dsctl_core.lora.formats import LoraFile, decode, format_of
from dsctl_core.lora.names import DENOISER
from dsctl_core.lora.original import from_original
from dsctl_core.lora.peft_config import ADAPTER_CONFIG, ADAPTER_FILE, read_peft_config, scale_function


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
    check_tensors(file, tensors)
    config = read_peft_config(file, metadata)
    components, flat = decode(path, tensors, component_names, scale_function(path, config))
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
            pickles = sorted(each.name for each in path.iterdir() if each.is_file() and is_pickle(each))
            what = f"only a pickle ({pickles[0]}), which can run code when it is opened" if pickles else "no LoRA"
            raise DsctlError(f"{path} holds {what}", hint=f"give a .safetensors file, or a folder with {ADAPTER_FILE}")
        path = file
    check_safetensors(path)
    return path
