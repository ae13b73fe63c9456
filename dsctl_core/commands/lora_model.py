"""Find the model that LoRA files are for: the one that was named, else the family in the headers, else by layer names.

Layer names of a LoRA mean nothing without their model: some are layers of several families, and the files of some tools
have other names for them in one family only. So a family is used only if it is certain.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.checkpoint.build import component_class, empty_component
from dsctl_core.checkpoint.load import find_component_paths
from dsctl_core.checkpoint.quantized import stored_in
from dsctl_core.checkpoint.single_file import published_config
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families import families
from dsctl_core.families.resolve import ResolvedModel, resolve_model
from dsctl_core.family import Component, Family
from dsctl_core.lora.files import family_in_header, read_lora, refuse_other_family, with_model_names
from dsctl_core.lora.formats import FORMATS, LoraFile, format_for, with_dots
from dsctl_core.lora.merge import component_shapes
from dsctl_core.options.model import SomeModelOptions, WeightOptions

if TYPE_CHECKING:
    from torch import nn

Shapes = dict[str, dict[str, tuple[int, int]]]  # {component: {layer: (out, in)}}
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")  # a number in a layer name, such as that of a block


@dataclass(frozen=True)
class LoraModel:
    """The model that LoRAs are for, as far as it is known.

    Attributes:
        candidates: The families that have the layers; more than one if no model was named and several have them all.
        shapes: (out, in) of the linear layers of the model, by component; {} if no model was named.
    """

    candidates: tuple[Family, ...]
    shapes: Shapes

    def family_for(self, form: str, paths: Sequence[Path]) -> Family | None:
        """Return the family whose layer names a file in the format `form` has; None if all candidates have the same.

        Raises UsageError if the names depend on which of the candidates it is. `paths` are for the message.
        """
        if len(self.candidates) == 1:
            return self.candidates[0]
        tables = [family.original_names for family in self.candidates]
        renamed = FORMATS[form].original and len(set(map(id, tables))) > 1
        if renamed or len({format_for(form, table).prefix for table in tables}) > 1:
            named = " and ".join(family.name for family in self.candidates)
            raise UsageError(
                f"the layers of {paths[0]} are layers of {named}, which have other names in the format {form}",
                hint="give --model, the model that the LoRA was trained on",
            )
        return None


def resolve(options: SomeModelOptions) -> ResolvedModel:
    """Return the model that `options` name; raise DsctlError if they name none, or an unknown one."""
    return resolve_model(options.model, options.model_paths, options.model_id_with_origin_paths, options.tokenizer_path)


def component_names() -> tuple[str, ...]:
    """Return the names of all components of all families, which can be prefixes of layer names."""
    return tuple(dict.fromkeys(part.name for family in families().values() for part in family.components))


def read_loras(paths: Sequence[Path], options: WeightOptions) -> tuple[list[LoraFile], LoraModel]:
    """Read the LoRAs at `paths`, all for one model, with the layer names of that model.

    Raises DsctlError for a layer that the model does not have, or that has another shape there, for LoRAs of different
    families, and if no model is named and no family has all layers.
    """
    plain = [read_lora(path, component_names()) for path in paths]
    if options.names_model:
        resolved = resolve_model(options.model, options.model_paths, options.model_id_with_origin_paths)
        return _of_model(plain, resolved)
    for lora in plain:
        _refuse_flat(lora)
    headers = sorted({named for lora in plain if (named := family_in_header(lora)) is not None})
    if len(headers) > 1:
        raise DsctlError(f"the LoRAs are for different families: {', '.join(headers)}", hint="merge LoRAs of one model")
    known = [family for name, family in families().items() if not headers or name == headers[0]]
    fitting = [(family, renamed) for family in known if (renamed := _fitting(plain, family)) is not None]
    found = [(family, renamed) for family, renamed in fitting if not _extends_one(family, [f for f, _ in fitting])]
    if not found:
        raise DsctlError(
            f"{plain[0].path} is for no model that is known here, by the names of its layers"
            + (f", though its header names {headers[0]}" if headers else ""),
            hint="give --model, the model that the LoRA was trained on",
        )
    renamed = found[0][1]
    if any(_names(other) != _names(renamed) for _, other in found):
        named = " and ".join(family.name for family, _ in found)
        raise UsageError(
            f"the layers of {plain[0].path} can be those of {named}",
            hint="give --model, the model that the LoRA was trained on",
        )
    return renamed, LoraModel(tuple(family for family, _ in found), {})


def _extends_one(family: Family, others: Sequence[Family]) -> bool:
    """Return whether the denoiser of `family` has the layers of one of `others`, and more."""
    return any(each.name in family.same_layers_as and family.name not in each.same_layers_as for each in others)


def read_for(resolved: ResolvedModel, path: Path) -> LoraFile:
    """Read the LoRA at `path` for a model; raise DsctlError if its header names another family."""
    lora = read_lora(path, component_names(), [resolved.family.original_names])
    refuse_other_family(lora, resolved.family)
    return lora


def _of_model(loras: Sequence[LoraFile], resolved: ResolvedModel) -> tuple[list[LoraFile], LoraModel]:
    for lora in loras:
        refuse_other_family(lora, resolved.family)
    renamed = [with_model_names(lora, [resolved.family.original_names]) for lora in loras]
    shapes = model_shapes(resolved, {name for lora in renamed for name in lora.components})
    found = []
    for lora in renamed:
        layers = {name: with_dots(lora, name, shapes.get(name, ())) for name in lora.components}
        for component, of in layers.items():
            for name, layer in of.items():
                actual = shapes.get(component, {}).get(name)
                if actual != layer.shape:
                    where = "not in this one" if actual is None else f"{actual[0]}x{actual[1]} here and "
                    where += "" if actual is None else f"{layer.shape[0]}x{layer.shape[1]} in the LoRA"
                    raise DsctlError(
                        f"{lora.path} is for another model: {component}.{name} is {where}",
                        hint="check that the LoRA was trained on this model",
                    )
        found.append(replace(lora, components=layers, flat=False))
    return found, LoraModel((resolved.family,), shapes)


def _fitting(loras: Sequence[LoraFile], family: Family) -> list[LoraFile] | None:
    """Return `loras` with the names of `family`, or None if the family lacks one of their layers.

    The number of a block is not compared: the models of a family have different numbers of blocks. Of components
    whose sizes the family does not declare, the names of layers are not known and not compared.
    """
    renamed = [with_model_names(lora, [family.original_names]) for lora in loras]
    own = {component.name: component for component in family.components}
    for lora in renamed:
        for name, layers in lora.components.items():
            if name not in own:
                return None
            patterns = _layer_patterns(family.name, own[name].class_name)
            if patterns and not patterns.issuperset(NUMBER.sub("N", layer) for layer in layers):
                return None
    return renamed


@functools.cache
def _layer_patterns(family_name: str, class_name: str) -> frozenset[str]:
    """Return the layer names of all published sizes of a component, by its class, with N for numbers; empty if none."""
    family = families()[family_name]
    same = [component.name for component in family.components if component.class_name == class_name]
    declared = next((name for name in same if name in family.published), None)
    if declared is None:
        return frozenset()
    configs = family.all_sizes(declared)
    layers = {layer for config in configs for layer in published_shapes(family.component(declared), config)}
    return frozenset(NUMBER.sub("N", layer) for layer in layers)


def _names(loras: Iterable[LoraFile]) -> list[dict[str, set[str]]]:
    return [{name: set(layers) for name, layers in lora.components.items()} for lora in loras]


def model_shapes(resolved: ResolvedModel, wanted: Iterable[str]) -> Shapes:
    """Return (out, in) of the linear layers of the components `wanted` of a model.

    Those of a published model are computed from its declared sizes, so that it need not be downloaded.
    """
    family, preset = resolved.family, resolved.preset
    wanted = [component.name for component in family.components if component.name in set(wanted)]
    declared = [name for name in wanted if preset is not None and preset.model_id and name in family.published]
    variant = None if preset is None else preset.variant
    found = {name: published_shapes(family.component(name), family.sizes(name, variant)) for name in declared}
    rest = [name for name in wanted if name not in declared]
    if rest:
        places = find_component_paths(family, resolved.configs_of(rest)).components
        found |= {name: shapes_at(family, name, places[name]) for name in rest if name in places}
    return found


def shapes_at(family: Family, name: str, place: Path) -> dict[str, tuple[int, int]]:
    """Return (out, in) of the linear layers of the component with its weights at `place`, a folder or a file."""
    import torch

    component = family.component(name)
    if place.is_dir() and stored_in(place) is None:
        return component_shapes(place)
    if place.is_dir():  # what is packed has other shapes
        with torch.device("meta"):
            return _linear_shapes(empty_component(component, place))
    return published_shapes(component, published_config(family, component, place))


def published_shapes(component: Component, config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return (out, in) of the linear layers of a component with the sizes in `config`, without making its weights."""
    import torch

    with torch.device("meta"):
        return _linear_shapes(component_class(component)(**config))


def _linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    from torch import nn

    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {name: (module.out_features, module.in_features) for name, module in linear.items()}


def _refuse_flat(lora: LoraFile) -> None:
    """Raise UsageError for a LoRA whose layer names have no dots, which only the layers of the model restore."""
    known = [family.original_names for family in families().values()]
    if lora.flat and with_model_names(lora, known) is lora:
        raise UsageError(
            f"{lora.path} writes its layers' names without dots, so they can only be told from those of the model",
            hint="give --model too",
        )
