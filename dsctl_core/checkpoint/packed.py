"""Load networks that were published with linear layers in few bits, as diffusers and transformers write them.

The formats are those of dsctl_core.checkpoint.quantized.STORED. Packed layers stay as they are in the files, and are
made whole when they run; see dsctl_core.memory.quantize.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.checkpoint.build import checked_build, network_of, refused_by_library
from dsctl_core.checkpoint.identify import identify_component, weight_files
from dsctl_core.checkpoint.of_transformers import absent_by_design, finish, is_of_transformers, names_in
from dsctl_core.checkpoint.packed_bitsandbytes import EightBits, FourBits
from dsctl_core.checkpoint.packed_layer import AGAIN, PackedReader
from dsctl_core.checkpoint.packed_torchao import Torchao
from dsctl_core.checkpoint.quantized import FOUR_BITS, INSTEAD, LLM_INT8, TORCHAO, stored_in
from dsctl_core.errors import DsctlError
from dsctl_core.family import Component, Family
from dsctl_core.files.safetensors import read_safetensors, tensor_entries
from dsctl_core.memory.quantize import hold_packed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    import torch
    from torch import Tensor, nn

    from dsctl_core.checkpoint.model_config import ModelConfig

READERS: dict[str, PackedReader] = {form: FourBits(form) for form in FOUR_BITS}
READERS |= {LLM_INT8: EightBits(), TORCHAO: Torchao()}


def stored_formats(family: Family, configs: Iterable[ModelConfig]) -> dict[str, str]:
    """Return the formats that components on the disk are held in by their files, by name; nothing is downloaded."""
    found = {}
    for config in configs:
        with suppress(DsctlError):  # what is missing is told where it is loaded
            paths = replace(config, skip_download=True).resolve()
            folder = paths[0] if paths[0].is_dir() else paths[0].parent
            parts = [folder / each.folder for each in family.components]
            for part in [folder, *parts]:
                form = stored_in(part)
                if form is not None:
                    found[identify_component(family, part).name] = form
    return found


def load_packed(component: Component, folder: Path, cls: Any, dtype: torch.dtype, form: str) -> nn.Module:
    """Load a network from a folder in the format `form`, with what is not packed in `dtype`, frozen.

    Raises DsctlError unless the files hold exactly the tensors of the model.
    """
    from accelerate import init_empty_weights

    from dsctl_core.memory.dtypes import declare_float32_parts

    files, reader = weight_files(folder), READERS[form]
    with checked_build(component, folder, cls, files) as config, init_empty_weights():
        model = network_of(component, folder, cls, config)
    tensors: dict[str, Tensor] = {}
    about: dict[str, str] = {}
    for file in files:
        found, metadata = read_safetensors(file)
        tensors, about = tensors | found, about | metadata
    layers = reader.layers(tensors)
    if not layers:
        raise DsctlError(f"{folder} has no packed weight, but its config.json has them in {form}", hint=INSTEAD)
    parts = {name: {own: tensors.pop(own) for own in names} for name, names in layers.items()}
    declare_float32_parts(model, component.float32_parts)
    inside = names_in(model, [*(f"{name}.weight" for name in layers), *tensors])
    modules = dict(model.named_modules())
    packed = {name: inside[f"{name}.weight"] for name in layers}
    linear = {name: _layer(folder, model, modules, own, name) for name, own in packed.items()}
    _take_whole(folder, model, {inside[name]: tensor for name, tensor in tensors.items()}, packed.values(), dtype)
    for name, layer in linear.items():
        said = about.get(packed[name], about.get(f"{name}.weight"))
        hold_packed(layer, *reader.held(folder, name, layer, parts.pop(name), said), dtype)
    return model.eval().requires_grad_(False)


def pack_as_stored(folder: Path, model: nn.Module, form: str, dtype: torch.dtype) -> None:
    """Have `model`, of fake tensors, hold its layers as the files in `folder` do, which are in the format `form`.

    Layers that the model does not have, such as those of blocks that a dry run leaves out, are left out. What is not
    packed gets the dtype that `load_packed` gives it in a model of `dtype`.
    """
    from torch import nn

    from dsctl_core.memory.dtypes import dtype_of, float32_parts

    entries: dict[str, Any] = {}
    for file in weight_files(folder):
        entries |= tensor_entries(file)
    layers = READERS[form].layers(entries)
    inside, modules = names_in(model, [f"{name}.weight" for name in layers]), dict(model.named_modules())
    for name, names in layers.items():
        layer: Any = modules.get(inside[f"{name}.weight"].removesuffix(".weight"))
        if layer is not None:
            hold_packed(layer, *READERS[form].simulated(name, layer, {own: entries[own] for own in names}), dtype)
    parts = float32_parts(model, dtype=dtype)
    for name, tensor in list(model.named_parameters()):
        wanted, (prefix, _, own) = dtype_of(name, tensor, dtype, parts), name.rpartition(".")
        if tensor.dtype != wanted and tensor.dtype.itemsize > 1:
            model.get_submodule(prefix)._parameters[own] = nn.Parameter(tensor.to(wanted), requires_grad=False)


def _layer(folder: Path, model: Any, modules: Mapping[str, nn.Module], own: str, name: str) -> nn.Linear:
    """Return the linear layer among the `modules` of `model` with the weight `own`, which the files call `name`.

    Raises DsctlError where there is none, and for one whose weight the code of the class looks at.
    """
    from torch import nn

    layer = modules.get(own.removesuffix(".weight"))
    if not isinstance(layer, nn.Linear):
        raise DsctlError(f"{folder} has {name} packed, which is no such layer of the model", hint=AGAIN)
    if is_of_transformers(model) and {*own.split(".")} & {*(model._keep_in_fp32_modules or ())}:
        raise DsctlError(
            f"{folder} has {name} packed, of which a {type(model).__name__} needs the precision",
            hint="use weights that transformers has packed, which leaves this layer out",
        )
    return layer


def _take_whole(
    folder: Path, model: nn.Module, tensors: Mapping[str, Tensor], packed: Collection[str], dtype: torch.dtype
) -> None:
    """Have `model` hold `tensors`, what is not packed of it, in `dtype`; raise DsctlError for what does not fit."""
    from dsctl_core.memory.dtypes import dtype_of, float32_parts

    wanted = {name: tensor for name, tensor in model.state_dict().items() if name not in packed}
    shapes = {name: tensor.shape for name, tensor in wanted.items()}
    absent, beyond = absent_by_design(model, shapes.keys() - tensors.keys(), tensors.keys() - shapes.keys())
    for name in sorted((shapes.keys() - absent) ^ (tensors.keys() - beyond)):
        verb = "lacks" if name in shapes else "has, beyond the model,"
        raise DsctlError(f"{folder} {verb} {name}", hint=AGAIN)
    for name in tensors.keys() - beyond:
        if tensors[name].shape != shapes[name]:
            raise DsctlError(f"{folder} misshapes {name}: it is {tuple(tensors[name].shape)}", hint=AGAIN)
        if wanted[name].is_floating_point() != tensors[name].is_floating_point():
            problem = f"{folder}: {name} is {tensors[name].dtype}, and nothing says how it is packed"
            raise DsctlError(problem, hint=AGAIN)
    parts = float32_parts(model, dtype=dtype)
    cast = {name: each.to(dtype_of(name, each, dtype, parts)) for name, each in tensors.items() if name not in beyond}
    model.load_state_dict(cast, strict=False, assign=True)
    with refused_by_library(folder, type(model)):
        finish(model, folder, absent)
