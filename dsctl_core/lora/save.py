"""Write LoRA files, and verify each before it gets its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.errors import DsctlError
from dsctl_core.family import OriginalNames
from dsctl_core.files.atomic import atomic_folder, atomic_path, write_json
from dsctl_core.files.safetensors import read_safetensors, write_safetensors
from dsctl_core.lora.formats import DORA_SCALE, MAGNITUDE, Layers, encode, format_for
from dsctl_core.lora.names import DENOISER
from dsctl_core.lora.original import to_original
from dsctl_core.lora.peft_config import ADAPTER_CONFIG, ADAPTER_FILE
from dsctl_core.lora.proof import Shapes, verify_lora, verify_original_names

if TYPE_CHECKING:
    from torch import Tensor


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

    chosen = format_for(form, original)
    tensors: dict[str, Tensor] = {}
    renamed: Layers = {}
    for component, layers in components.items():
        if original is not None and chosen.original and component == unnamed:
            renamed = to_original(layers, original, form)
            tensors |= encode(renamed, component, chosen, unnamed)
        else:
            tensors |= encode(layers, component, chosen, unnamed)
    kept = {
        # Magnitudes stay in float32: rounding one would change the norm of a whole row.
        key: tensor if key.endswith((".alpha", MAGNITUDE, DORA_SCALE)) else tensor.to(getattr(torch, dtype))
        for key, tensor in tensors.items()
    }
    about = {**metadata, "format_of_keys": form}
    if not chosen.folder:
        with atomic_path(path) as temporary:
            write_safetensors(temporary, kept, about)
            verify_lora(temporary, path, components, shapes, dtype, original)
            if original is not None and renamed:
                verify_original_names(temporary, path, components[unnamed], list(renamed), original, dtype)
        return path
    with atomic_folder(path, remove=_remove_adapter) as temporary:
        write_safetensors(temporary / ADAPTER_FILE, kept, about)
        write_json(temporary / ADAPTER_CONFIG, adapter_config(components[unnamed], metadata.get("base_model")))
        verify_lora(temporary, path, components, shapes, dtype, original)
    return path


def _remove_adapter(folder: Path) -> None:
    """Remove an adapter folder that `save_lora` wrote; raise a DsctlError for one that anything else is in."""
    names = {path.name for path in folder.iterdir()}
    if names:
        _, about = read_safetensors(folder / ADAPTER_FILE) if ADAPTER_FILE in names else ({}, {})
        if folder.is_symlink() or names != {ADAPTER_FILE, ADAPTER_CONFIG} or "format_of_keys" not in about:
            raise DsctlError(
                f"{folder} is there already and is no LoRA that dsctl wrote", hint="give another name, or remove it"
            )
        for name in names:
            (folder / name).unlink()
    folder.rmdir()


def adapter_config(layers: Layers, base_model: str | None) -> dict[str, Any]:
    """Return the contents of peft's adapter_config.json for `layers`: each layer by name, with its rank.

    Alpha is the rank, because the scale is folded into the up matrices: diffusers applies the file of some models
    without reading the alpha in this config.
    """
    first = next(iter(layers.values()))
    ranks = {name: layer.rank for name, layer in layers.items() if layer.rank != first.rank}
    # A pattern is also that of a layer whose name ends with it, and peft takes the first one: the longest go first.
    ranks |= {name: each.rank for name, each in layers.items() if any(name.endswith(f".{end}") for end in ranks)}
    ranks = dict(sorted(ranks.items(), key=lambda pair: -len(pair[0])))
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
        "lora_alpha": first.rank,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(layers),
        "task_type": None,
        "use_dora": first.magnitude is not None,
        "use_rslora": False,
    }
