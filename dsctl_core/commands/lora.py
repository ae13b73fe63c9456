"""`dsctl lora info`, `convert`, `resize` and `extract`: look at LoRA files, or write them anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsctl_core.checkpoint.identify import class_of, identify_component, weight_files
from dsctl_core.commands.lora_files import Written, networks_of, ranks_of, save
from dsctl_core.commands.lora_model import component_names, read_loras
from dsctl_core.errors import DsctlError
from dsctl_core.families import family_of_class, identify_folder
from dsctl_core.family import Component, Family
from dsctl_core.files.digest import weights_identity
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.lora.about import SPEC
from dsctl_core.lora.algebra import resize_layers
from dsctl_core.lora.extract import extract
from dsctl_core.lora.files import lora_weights, read_lora
from dsctl_core.lora.formats import LoraFile
from dsctl_core.lora.lycoris import LokrLayer, as_lora
from dsctl_core.lora.merge import component_shapes
from dsctl_core.options.lora_effects import LORA_ALREADY, ONE_COMPONENT
from dsctl_core.options.lora_tools import LoraConvertOptions, LoraExtractOptions, LoraInfoOptions, LoraResizeOptions
from dsctl_core.progress import NoProgress, Progress
from dsctl_core.remote.files_output import files_output


def info(options: LoraInfoOptions) -> dict[str, Any]:
    """Return what there is to say about a LoRA."""
    lora = read_lora(options.file, component_names())
    file = lora_weights(options.file)
    tensors, _ = read_safetensors(file)
    layers = [layer for of in lora.components.values() for layer in of.values()]
    products = [layer for layer in layers if isinstance(layer, LokrLayer)]
    factors = sorted({"{}x{} (x) {}x{}".format(*layer.blocks[0], *layer.blocks[1]) for layer in products})
    return {
        "file": str(options.file),
        "format": lora.format,
        "network": networks_of(layers),
        "components": {name: len(of) for name, of in lora.components.items()},
        "ranks": ranks_of(layers),
        **({"factors": factors} if factors else {}),
        "scales": sorted({round(layer.scale, 6) for layer in layers}),
        "dora": any(layer.magnitude is not None for layer in layers),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}),
        "parameters": sum(part.numel() for layer in layers for part in layer.parts().values()),
        "bytes": file.stat().st_size,
        "metadata": lora.metadata,
    }


def convert(options: LoraConvertOptions) -> Written:
    """Write a LoRA in another format."""
    files_output(options.output).require_new(options.output.name, "--output")
    (lora,), model = read_loras([options.file], options)
    family = model.family_for(options.to, [options.file])
    components, dtype = lora.components, options.lora_dtype or _dtype_of(options.file)
    if options.network is not None:
        if networks_of(layer for of in components.values() for layer in of.values()) in (["lora"], ["dora"]):
            LORA_ALREADY.refuse(options, file=options.file)
        components = {name: {key: as_lora(key, of[key]) for key in of} for name, of in components.items()}
        dtype = options.lora_dtype or "float32"
    about = _kept_metadata(lora, products=options.network is None)
    return save(options.output, components, about, options.to, dtype, model.shapes, None, family)


def resize(options: LoraResizeOptions) -> Written:
    """Write a LoRA at another rank."""
    files_output(options.output).require_new(options.output.name, "--output")
    (lora,), model = read_loras([options.file], options)
    family = model.family_for(options.lora_format, [options.file])
    parts = {name: resize_layers(layers, options.rank) for name, layers in lora.components.items()}
    components = {name: layers for name, (layers, _) in parts.items()}
    worst = min((kept for _, kept in parts.values()), key=lambda kept: kept.share)
    dtype = options.lora_dtype or _dtype_of(options.file)
    about = _kept_metadata(lora, products=False)
    return save(options.output, components, about, options.lora_format, dtype, model.shapes, worst, family)


def extract_lora(options: LoraExtractOptions, progress: Progress | None = None) -> Written:
    """Write the LoRA that leads from one checkpoint to another."""
    progress = progress or NoProgress()
    files_output(options.output).require_new(options.output.name, "--output")
    family, component, base = _component_at(options.base, options.component)
    if base == options.base and component.name != options.component:
        ONE_COMPONENT.refuse(options, found=component.name)
    tuned = options.tuned
    if tuned.is_dir() and (tuned / component.folder).is_dir():
        tuned = tuned / component.folder
    if not tuned.exists():
        raise DsctlError(f"{tuned} does not exist", hint="check the path")
    linear = linear_names(component, base)
    progress.start("Comparing", None, unit="tensor")
    found = extract(
        base, tuned, linear, options.rank, options.target_modules, lambda name: progress.advance(1, tensor=name)
    )
    progress.finish()
    about = {"family": family.name, "component": component.name, "base_model": str(options.base)}
    about |= {"base_weights": weights_identity(weight_files(base)), "extracted_from": tuned.name}
    shapes = {component.name: component_shapes(base)}
    layers = {component.name: found.layers}
    written = save(options.output, layers, about, options.lora_format, options.lora_dtype, shapes, found.kept, family)
    left_out = {"left_out": found.left_out} if found.left_out else {}
    return Written(written.output, {**written.facts, **left_out})


def _dtype_of(path: Path) -> str:
    tensors, _ = read_safetensors(lora_weights(path))
    found = {str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items() if not name.endswith("alpha")}
    return next(iter(found)) if len(found) == 1 and found <= {"float32", "bfloat16", "float16"} else "float32"


def _kept_metadata(lora: LoraFile, *, products: bool) -> dict[str, str]:
    """Return the metadata that stays true when a LoRA is written anew: not the format, nor what follows from it.

    Without `products` nothing of a LoKr stays.
    """
    gone = {"format", "format_of_keys", "lora_adapter_metadata", "rank", "alpha", "network"}
    gone |= set() if products else {"factor", "decompose_both", "full_matrix"}
    return {key: value for key, value in lora.metadata.items() if key not in gone and not key.startswith(SPEC)}


def _component_at(path: Path, name: str) -> tuple[Family, Component, Path]:
    if (path / "model_index.json").is_file():
        family = identify_folder(path)
        component = family.component(name)
        return family, component, path / component.folder
    if not path.is_dir():
        raise DsctlError(f"{path} is not a folder", hint="give a model folder, or the folder of one component")
    family = family_of_class(class_of(path), path)
    return family, identify_component(family, path), path


def linear_names(component: Component, folder: Path) -> list[str]:
    """Return the names of the linear layers of the component in `folder`, from its config.json alone."""
    import torch
    from torch import nn

    from dsctl_core.checkpoint.build import empty_component

    with torch.device("meta"):
        model = empty_component(component, folder)
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
