"""Read LoRA files of any format, and write LoRA files that are verified after writing."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.errors import DsctlError
from dsctl_core.family import OriginalNames
from dsctl_core.files.atomic import atomic_folder, atomic_path, write_json
from dsctl_core.files.safetensors import PICKLE_SUFFIXES, check_safetensors, read_safetensors, write_safetensors
from dsctl_core.lora.formats import (
    DENOISER,
    FORMATS,
    MAGNITUDE,
    Layers,
    LoraFile,
    LoraLayer,
    decode,
    encode,
    format_of,
    with_dots,
)
from dsctl_core.lora.original import from_original, to_original

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
Shapes = Mapping[str, tuple[int, int]]  # (out, in) of a component's linear layers, by name
# Tolerated difference between a layer in the file and the original layer, relative to its norm: the rounding of the two
# matrices to the dtype of the file.
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 4e-3}


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
    if DENOISER in components:
        dotted = from_original(components[DENOISER], original_names, flat=flat)
        flat = flat and dotted is components[DENOISER]
        # Headers of other tools may use this key for something else.
        owner = metadata["component"] if {"component", "family"} <= metadata.keys() else unnamed
        owner = DENOISER if owner in components else owner
        components[DENOISER] = dotted
        components = {owner if name == DENOISER else name: layers for name, layers in components.items()}
    beside = (file.parent / ADAPTER_CONFIG).is_file() and file.name == ADAPTER_FILE
    return LoraFile(path, components, metadata, format_of(tensors, beside), flat)


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


def save_lora(
    path: Path,
    components: Mapping[str, Layers],
    metadata: Mapping[str, str],
    *,
    form: str = "diffusers",
    dtype: str = "float32",
    shapes: Mapping[str, Shapes] | None = None,
    original: OriginalNames | None = None,
    unnamed: str = DENOISER,
) -> Path:
    """Write the layers of `components` to `path`, verify the result, and return the path.

    The file is read back before it is renamed to `path`: every layer must equal the original up to the rounding of
    `dtype` and, with `shapes`, every key must belong to a layer of the base with a matching shape. Otherwise nothing is
    written and a DsctlError is raised. It is also raised for a layer that the format has no name for.

    Args:
        path: File to write; a folder for the format "peft".
        components: Layers by component.
        metadata: Header of the file.
        form: Name of the format.
        dtype: Dtype of the two matrices of each layer.
        shapes: Shapes of the linear layers of each component of the base model (None: not checked).
        original: Original layer names of the denoiser (dsctl_core.lora.original), for formats that use them.
        unnamed: The denoiser that owns the layers, if there are several; the file names it only in the header, where
            `metadata` has it as "component".
    """
    import torch

    chosen = FORMATS[form]
    if original is not None and original.own_prefix and chosen.dora_prefix is not None:
        chosen = replace(chosen, prefix=chosen.dora_prefix)
    tensors: dict[str, Tensor] = {}
    for component, layers in components.items():
        renamed = original is not None and chosen.original and component == unnamed
        named = to_original(layers, original, form) if original is not None and renamed else layers
        tensors |= encode(named, component, chosen, unnamed)
    kept = {
        # Magnitudes stay in float32: rounding one would change the norm of a whole row.
        key: tensor if key.endswith((".alpha", MAGNITUDE)) else tensor.to(getattr(torch, dtype))
        for key, tensor in tensors.items()
    }
    about = {**metadata, "format_of_keys": form}
    if not chosen.folder:
        with atomic_path(path) as temporary:
            write_safetensors(temporary, kept, about)
            verify_lora(temporary, path, components, shapes, dtype, original)
        return path
    with atomic_folder(path, remove=shutil.rmtree) as temporary:
        write_safetensors(temporary / ADAPTER_FILE, kept, about)
        write_json(temporary / ADAPTER_CONFIG, adapter_config(components[unnamed], metadata.get("base_model")))
        verify_lora(temporary, path, components, shapes, dtype, original)
    return path


def adapter_config(layers: Layers, base_model: str | None) -> dict[str, Any]:
    """Return the contents of peft's adapter_config.json for `layers`: each layer by name, with its rank and alpha."""
    first = next(iter(layers.values()))
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "r": first.rank,
        "lora_alpha": first.scale * first.rank,
        "rank_pattern": {name: layer.rank for name, layer in layers.items() if layer.rank != first.rank},
        "alpha_pattern": {
            name: layer.scale * layer.rank
            for name, layer in layers.items()
            if layer.scale * layer.rank != first.scale * first.rank
        },
        "target_modules": sorted(layers),
        "task_type": None,
        "use_dora": first.magnitude is not None,
        "use_rslora": False,
    }


def verify_lora(
    written: Path,
    path: Path,
    components: Mapping[str, Layers],
    shapes: Mapping[str, Shapes] | None,
    dtype: str,
    original: OriginalNames | None = None,
) -> None:
    """Raise DsctlError unless the file `written` holds exactly the layers of `components`.

    Args:
        written: The temporary file.
        path: The final path, for the message.
        components: The layers that were written, by component.
        shapes: Shapes of the linear layers of each component of the base model (None: not checked).
        dtype: Dtype of the file, which determines the tolerance.
        original: Original layer names of the denoiser, if the file may use them.
    """
    import torch

    found = read_lora(written, tuple(components), [original])
    generator = torch.Generator().manual_seed(0)
    for component, layers in components.items():
        base = (shapes or {}).get(component)
        back = with_dots(found, component, base if base is not None else layers)
        if set(back) != set(layers):
            odd = sorted(set(back) ^ set(layers))[0]
            raise _unproven(path, f"{odd} is not in both the LoRA and the file")
        for name, layer in layers.items():
            if base is not None and base.get(name) != layer.shape:
                raise _unproven(path, f"{name} of the {component} is {base.get(name)} in the base, {layer.shape} here")
            probe = torch.randn(layer.shape[1], 4, generator=generator)
            wanted, given = (
                each.up.detach().cpu().float() @ (each.down.detach().cpu().float() @ probe) * each.scale
                for each in (layer, back[name])
            )
            if not _same_magnitude(layer, back[name]):
                raise _unproven(path, f"the magnitude of {name} is another")
            size = wanted.norm().clamp(min=1e-12)
            if not torch.isfinite(given).all() or (given - wanted).norm() > TOLERANCE[dtype] * size + 1e-12:
                raise _unproven(path, f"{name} does not compute in {dtype} what it computed in training")


def _same_magnitude(one: LoraLayer, other: LoraLayer) -> bool:
    import torch

    if one.magnitude is None or other.magnitude is None:
        return one.magnitude is other.magnitude
    return torch.equal(one.magnitude.detach().cpu().float(), other.magnitude.detach().cpu().float())


def _unproven(path: Path, why: str) -> DsctlError:
    return DsctlError(
        f"{path} was not written, because the file would not be the LoRA: {why}",
        hint="try --lora-dtype float32; if that does not help, report this",
    )
