"""Merge LoRAs into the weight files of a component, tensor by tensor, or into one LoRA."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsctl_core.checkpoint.identify import weight_files
from dsctl_core.checkpoint.stream import ChangeRows, rewrite, tensor_shapes
from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import write_error
from dsctl_core.lora.algebra import RankTruncation, add_layers, resize_layers
from dsctl_core.lora.dora import refuse_dora, update_of
from dsctl_core.lora.formats import Layers, LoraFile, with_dots
from dsctl_core.lora.layer import LoraLayer, Update
from dsctl_core.lora.lycoris import as_lora
from dsctl_core.readable import counted

SHOWN = 8  # number of unmatched layers that a message names
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScaledLora:
    """A LoRA and the scale with which to apply it."""

    lora: LoraFile
    scale: float


def component_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the shape (out, in) of each matrix of the component in `folder`, by the name of its layer."""
    found = {}
    for file in weight_files(folder):
        for name, shape in tensor_shapes(file).items():
            if name.endswith(".weight") and len(shape) == 2:
                found[name.removesuffix(".weight")] = (shape[0], shape[1])
    return found


def matched(
    loras: Sequence[ScaledLora], shapes: Mapping[str, Mapping[str, tuple[int, int]]], *, allow_partial: bool
) -> dict[str, dict[str, list[tuple[Update, float]]]]:
    """Return the updates of each layer of each component, with their scales.

    `shapes` are the shapes (out, in) of the layers of each component of the base model. Raises DsctlError if no layer
    of a LoRA is in the model, if some are not (unless `allow_partial`), or if a layer has another shape.
    """
    updates: dict[str, dict[str, list[tuple[Update, float]]]] = {}
    for part in loras:
        unmatched, count = [], 0
        for component in part.lora.components:
            base = shapes.get(component, {})
            for name, layer in with_dots(part.lora, component, base).items():
                count += 1
                if name not in base:
                    unmatched.append(f"{component}.{name}")
                    continue
                if base[name] != layer.shape:
                    raise DsctlError(
                        f"{part.lora.path} is for another model: {name} is {base[name][0]}x{base[name][1]} here and "
                        f"{layer.shape[0]}x{layer.shape[1]} in the LoRA",
                        hint="check that the LoRA was trained on this model",
                    )
                updates.setdefault(component, {}).setdefault(name, []).append((layer, part.scale))
        _refuse_unmatched(part.lora.path, unmatched, count, allow_partial)
    return updates


def _refuse_unmatched(path: Path, unmatched: list[str], count: int, allow_partial: bool) -> None:
    if not unmatched:
        return
    shown = ", ".join(unmatched[:SHOWN]) + (", ..." if len(unmatched) > SHOWN else "")
    if len(unmatched) == count:
        raise DsctlError(
            f"{path} is for another model: none of its {counted(count, 'layer')} is in this one ({shown})",
            hint="check that the LoRA was trained on this model",
        )
    if not allow_partial:
        raise DsctlError(
            f"{path}: {len(unmatched)} of its {counted(count, 'layer')} "
            f"{'is' if len(unmatched) == 1 else 'are'} not in this model: {shown}",
            hint="give --allow-partial to merge the others",
        )
    logger.warning("%s: %d of %d layers are not in this model: %s", path, len(unmatched), count, shown)


def merge_into_weights(
    folder: Path,
    target: Path,
    updates: Mapping[str, Sequence[tuple[Update, float]]],
    tick: Callable[[str], None] = lambda name: None,
    replaced: Mapping[str, ChangeRows] | None = None,
) -> None:
    """Write the component in `folder` to the new folder `target` with `updates` added to its layers.

    The result is W + sum_i c_i s_i B_i A_i, computed in float32, with the matrix of a LoKr or a LoHa for B A. Dtypes,
    shards and tensor names are those of the original. `tick` is called with the name of each tensor when it is done.
    `replaced` are changes of tensors that are made before the updates.
    """
    changes = dict(replaced or {})
    for name, parts in updates.items():
        weight = f"{name}.weight"
        changes[weight] = _one_after_the_other(changes.get(weight), _adding(parts))
    weights = weight_files(folder)
    target.mkdir(parents=True)
    for file in sorted(folder.iterdir()):
        if file in weights:
            rewrite(file, target / file.name, changes, tick)
        elif file.is_file() and not file.name.startswith("."):
            copy_file(file, target / file.name)


def _one_after_the_other(first: ChangeRows | None, then: ChangeRows) -> ChangeRows:
    return then if first is None else lambda rows, number: then(first(rows, number), number)


def _adding(parts: Sequence[tuple[Update, float]]) -> ChangeRows:
    def change(rows, first):  # type: ignore[no-untyped-def]
        last = first + rows.shape[0]
        # A DoRA rescales the base weight, so a copy of it is needed.
        base = rows.clone() if any(layer.magnitude is not None for layer, _ in parts) else rows
        for layer, number in parts:
            if isinstance(layer, LoraLayer) and layer.magnitude is None:
                rows.addmm_(layer.up[first:last].float(), layer.down.float(), alpha=layer.scale * number)
            else:
                rows.add_(update_of(base, layer.rows(first, last), number))
        return rows

    return change


def copy_file(source: Path, target: Path) -> None:
    """Copy a file; raise DsctlError if it cannot be written, for example on a full disk."""
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise write_error(target, error) from error


def merge_into_one(
    loras: Sequence[ScaledLora], module_names: Mapping[str, Iterable[str]], rank: int | None
) -> tuple[dict[str, Layers], RankTruncation | None]:
    """Return the weighted sum of `loras` as one LoRA, and the result of the truncation, if any.

    The sum is exact, and its rank is the sum of the ranks, unless `rank` is set: then it is truncated to that rank. A
    LoKr or a LoHa is added as the LoRA with the same update; see dsctl_core.lora.lycoris.as_lora.
    `module_names` are the names of the base's modules by component; they are only needed for flat layer names.
    """
    parts: dict[str, dict[str, list[tuple[LoraLayer, float]]]] = {}
    for part in loras:
        for component in part.lora.components:
            refuse_dora(part.lora.components[component], "merged into a LoRA")
            for name, layer in with_dots(part.lora, component, module_names.get(component, ())).items():
                parts.setdefault(component, {}).setdefault(name, []).append((as_lora(name, layer), part.scale))
    summed: dict[str, Layers] = {
        component: {name: add_layers(each) for name, each in of.items()} for component, of in parts.items()
    }
    if rank is None:
        return summed, None
    flat: Layers = {f"{component}\0{name}": layer for component, of in summed.items() for name, layer in of.items()}
    cut, kept = resize_layers(flat, rank)
    found: dict[str, Layers] = {}
    for joined, layer in cut.items():
        component, _, name = joined.partition("\0")
        found.setdefault(component, {})[name] = layer
    return found, RankTruncation(kept.share, kept.worst_share, kept.worst_layer.replace("\0", "."))
