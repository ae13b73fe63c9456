"""Verify a LoRA file that was written: it must hold the layers that were trained, under names of the model.

The file is read by dsctl's own reader and, where it uses the layer names of a model's original release, also by
diffusers' conversion of original weights, which does not share the table that the names were written with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dsctl_core.checkpoint.single_file import conversion_of
from dsctl_core.errors import DsctlError
from dsctl_core.family import OriginalNames
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.lora.files import read_lora
from dsctl_core.lora.formats import Layers, decode, with_dots
from dsctl_core.lora.layer import Update
from dsctl_core.lora.names import DENOISER

if TYPE_CHECKING:
    from torch import Tensor

Shapes = Mapping[str, tuple[int, int]]  # (out, in) of a component's linear layers, by name
# Tolerated difference between a layer in the file and the original layer, relative to its norm: the rounding of the two
# matrices to the dtype of the file.
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 4e-3}
COLUMNS = 4  # random vectors that each update is applied to


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

    try:
        found = read_lora(written, tuple(components), [original])
    except DsctlError as error:
        raise _unproven(path, error.problem.replace(f"{written}: ", "")) from error
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
            if not _same_magnitude(layer, back[name]):
                raise _unproven(path, f"the magnitude of {name} is another")
            probe = torch.randn(layer.shape[1], COLUMNS, generator=generator)
            if not _close(_applied(back[name], probe), _applied(layer, probe), dtype):
                raise _unproven(path, f"{name} does not compute in {dtype} what it computed in training")


def verify_original_names(
    written: Path, path: Path, layers: Layers, originals: Sequence[str], names: OriginalNames, dtype: str
) -> None:
    """Raise DsctlError unless diffusers reads the original names in the file `written` as those of `layers`.

    Diffusers converts whole weights. Its conversion renames them and cuts them by rows, so it can be given the products
    of the updates with a few vectors instead. Nothing is checked if diffusers has no conversion of these names.

    Args:
        written: The temporary file.
        path: The final path, for messages.
        layers: The layers that were written, by their name in the model.
        originals: The original names of the layers, with dots.
        names: The table that `originals` come from.
        dtype: Dtype of the file, which determines the tolerance.
    """
    if names.converted_as is None:
        return
    components, flat = decode(written, read_safetensors(written)[0], ())
    dotted = {name.replace(".", "_") if flat else name: name for name in originals}
    found = components[DENOISER]
    if set(found) != set(dotted):
        raise _unproven(path, f"{sorted(set(found) ^ set(dotted))[0]} is not in both the LoRA and the file")
    probes = {columns: _probe(columns) for columns in {layer.shape[1] for layer in layers.values()}}
    products = {f"{dotted[name]}.weight": _applied(layer, probes[layer.shape[1]]) for name, layer in found.items()}
    converted: dict[str, Tensor] = conversion_of(names.converted_as)(checkpoint=products)
    for name, layer in layers.items():
        given = converted.pop(f"{name}.weight", None)
        if given is None or not _close(given, _applied(layer, probes[layer.shape[1]]), dtype):
            raise _unproven(path, f"diffusers does not read {name} in it")
    for name, extra in converted.items():  # the parts of a fused layer that have no update
        if extra.any():
            raise _unproven(path, f"diffusers reads {name} in it")


def _probe(columns: int) -> Tensor:
    import torch

    return torch.randn(columns, COLUMNS, generator=torch.Generator().manual_seed(columns))


def _applied(layer: Update, probe: Tensor) -> Tensor:
    """Return the product of the update of `layer` with `probe`, (out, COLUMNS) in float32."""
    return layer.mapped(lambda tensor: tensor.detach().cpu().float()).times(probe) * layer.scale


def _close(given: Tensor, wanted: Tensor, dtype: str) -> bool:
    import torch

    if given.shape != wanted.shape or not torch.isfinite(given).all():
        return False
    return bool((given - wanted).norm() <= TOLERANCE[dtype] * wanted.norm().clamp(min=1e-12) + 1e-12)


def _same_magnitude(one: Update, other: Update) -> bool:
    import torch

    if one.magnitude is None or other.magnitude is None:
        return one.magnitude is other.magnitude
    return torch.equal(one.magnitude.detach().cpu().float(), other.magnitude.detach().cpu().float())


def _unproven(path: Path, why: str) -> DsctlError:
    return DsctlError(
        f"{path} was not written, because the file would not be the LoRA: {why}",
        hint="try --lora-dtype float32; if that does not help, report this",
    )
