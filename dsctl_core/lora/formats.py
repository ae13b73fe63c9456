"""Define the LoRA formats of several tools, one table row each, and convert between tensor names and layers.

For each layer a LoRA file holds down (R, in) and up (out, R); the update is scale * up @ down with scale = alpha / R.
The formats differ in the prefix of layer names, in the names of the two matrices, and in the location of alpha: folded
into the up matrix (so that a reader that ignores alpha applies the right strength), or in a separate tensor
`<layer>.alpha`. The matrices of a LoKr and of a LoHa have the names of LyCORIS in every format that has them; alpha is
folded into the first one. A DoRA has a further tensor per layer, the magnitude (out,), which has a name only in the
formats of diffusers, peft and LyCORIS.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dsctl_core.errors import DsctlError
from dsctl_core.family import OriginalNames
from dsctl_core.lora.layer import LoraLayer, Update
from dsctl_core.lora.lycoris import from_parts
from dsctl_core.lora.names import DENOISER, FACTOR, FLAT_PREFIXES, PRODUCT, parse
from dsctl_core.options.lora import TITLES

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


Layers = dict[str, Update]  # by the name of the layer in the component


@dataclass(frozen=True)
class LoraFile:
    """A LoRA read from a file: the layers of each component by name, and the metadata of the header.

    If `flat`, layer names have underscores instead of the dots of the model's names; `with_dots` restores them.
    """

    path: Path
    components: dict[str, Layers]
    metadata: dict[str, str] = field(default_factory=dict)
    format: str = "diffusers"
    flat: bool = False


@dataclass(frozen=True)
class LoraFormat:
    """The tensor names with which one tool writes the LoRA of the denoiser."""

    name: str
    prefix: str
    down: str
    up: str
    alpha: Literal["folded", "tensor"]
    flat: bool = False  # dots in layer names become underscores
    magnitude: str | None = None  # name of the magnitude of a DoRA; None: this tool cannot read a DoRA
    products: bool = True  # holds LoKr and LoHa too
    full_prefix: str | None = None  # prefix of the layers of a DoRA, a LoKr or a LoHa, if it is not `prefix`
    folder: bool = False  # a folder with adapter_model.safetensors and adapter_config.json, instead of one file
    original: bool = False  # with the layer names of the original release of a model, if it has such names

    def key(self, layer: str, part: str) -> str:
        """Return the tensor name of `part` of `layer`."""
        return f"{self.prefix}{layer.replace('.', '_') if self.flat else layer}.{part}"


MAGNITUDE = "lora_magnitude_vector"
DORA_SCALE = "dora_scale"  # LyCORIS's name of the magnitude, (out, 1)
UNUSED = 3  # number of unused tensors that a warning names
FORMATS = {
    form.name: form
    for form in (
        LoraFormat(
            "diffusers",
            "diffusion_model.",
            "lora_A.weight",
            "lora_B.weight",
            "folded",
            magnitude=MAGNITUDE,
            # diffusers detects the prefixes of other tools by the names of the two matrices, and fails on a third one.
            # Behind diffusion_model. it takes the layers of a LoKr for those of the original release of some models.
            full_prefix="transformer.",
        ),
        LoraFormat("comfyui", "diffusion_model.", "lora_down.weight", "lora_up.weight", "tensor", original=True),
        LoraFormat("kohya", "lora_unet_", "lora_down.weight", "lora_up.weight", "tensor", flat=True, original=True),
        # The library LyCORIS and SimpleTuner, with diffusers' names of the layers.
        LoraFormat(
            "lycoris", "lycoris_", "lora_down.weight", "lora_up.weight", "tensor", flat=True, magnitude=DORA_SCALE
        ),
        LoraFormat("diffsynth", "", "lora_A.default.weight", "lora_B.default.weight", "folded", products=False),
        # peft reads alpha from adapter_config.json, which other readers of the folder do not all do: alpha is the rank.
        LoraFormat(
            "peft",
            "base_model.model.",
            "lora_A.weight",
            "lora_B.weight",
            "folded",
            magnitude=MAGNITUDE,
            products=False,
            folder=True,
        ),
    )
}


def format_for(form: str, original: OriginalNames | None) -> LoraFormat:
    """Return the format `form`, with the prefix and names that its tool expects for a model with `original` names."""
    chosen = FORMATS[form]
    if original is None:
        return chosen
    if form == "diffusers" and original.diffusers_prefix is not None:
        return replace(chosen, prefix=original.diffusers_prefix)
    return replace(chosen, original=original.in_diffsynth) if form == "diffsynth" else chosen


def encode(layers: Layers, component: str, form: LoraFormat, unnamed: str = DENOISER) -> dict[str, Tensor]:
    """Return `layers` as float32 tensors with the names of the format `form`.

    Only the format "diffusers" supports components other than the denoiser, with the name of the component as prefix.
    Of several denoisers, each has a file of its own; the layers of `unnamed` get the prefix of a single denoiser.
    """
    import torch

    if component != unnamed:
        if form.name != "diffusers":
            raise DsctlError(
                f"the format {form.name} has no names for a LoRA on the {component}", hint="write it as diffusers"
            )
        form = replace(form, prefix=f"{component}.", full_prefix=None)
    networks = {layer.network for layer in layers.values() if layer.network != "lora"}
    decomposed = {layer.network for layer in layers.values() if layer.magnitude is not None}
    for network in sorted(networks):
        if not form.products:
            raise _cannot_hold(form, TITLES[network], [each.name for each in FORMATS.values() if each.products])
    if decomposed and (form.magnitude is None or (decomposed != {"lora"} and form.magnitude != DORA_SCALE)):
        named = [each for each in FORMATS.values() if each.magnitude is not None]
        able = [each.name for each in named if decomposed == {"lora"} or each.magnitude == DORA_SCALE]
        what = "DoRA" if decomposed == {"lora"} else f"{TITLES[max(decomposed - {'lora'})]} with magnitudes"
        raise _cannot_hold(form, what, able)
    if networks or decomposed:
        form = replace(form, prefix=form.full_prefix or form.prefix)
    tensors = {}
    for name, layer in layers.items():
        names = {"down": form.down, "up": form.up}
        # The scale of a LoKr of whole matrices has no other place: readers do not divide its alpha by anything.
        folded = layer.scale if form.alpha == "folded" or layer.rank is None else 1.0
        holder = "up" if layer.network == "lora" else None
        for part, tensor in layer.parts().items():
            holder = holder or part
            factor = folded if part == holder else 1.0
            # A copy, because layers may share a down matrix.
            tensors[form.key(name, names.get(part, part))] = tensor.detach().float().cpu().clone() * factor
        if layer.magnitude is not None and form.magnitude is not None:
            magnitude = layer.magnitude.detach().float().cpu().clone()
            tensors[form.key(name, form.magnitude)] = magnitude[:, None] if form.magnitude == DORA_SCALE else magnitude
        if form.alpha == "tensor":
            tensors[form.key(name, "alpha")] = torch.tensor(1.0 if layer.rank is None else layer.scale * layer.rank)
    return tensors


def _cannot_hold(form: LoraFormat, what: str, able: list[str]) -> DsctlError:
    return DsctlError(f"the format {form.name} cannot hold a {what}", hint=f"write it as {', '.join(able)}")


def decode(
    path: Path,
    tensors: Mapping[str, Tensor],
    component_names: Iterable[str],
    scale_of: Callable[[str, int], float] = lambda layer, rank: 1.0,
) -> tuple[dict[str, Layers], bool]:
    """Return the layers in `tensors` by component, and whether their names are flat.

    Parts for a text encoder or for embeddings of another tool are left out, with a warning that names them.

    Args:
        path: The file, for messages.
        tensors: The tensors by the names in the file; see dsctl_core.lora.names.
        component_names: The possible prefixes of layer names; a layer without prefix belongs to the denoiser.
        scale_of: Returns the scale for (layer, rank) where `tensors` has no alpha.
    """
    parts, flat = _parts(path, {key: each for key, each in tensors.items() if key != FACTOR}, tuple(component_names))
    components: dict[str, Layers] = {}
    for (component, name), of in parts.items():
        product = from_parts(path, name, of, dimension_of_whole=FACTOR in tensors)
        layer: Update = _lora_layer(path, name, of, scale_of) if product is None else product
        layer = layer.with_values(scale=layer.scale, magnitude=_magnitude(path, name, of, layer))
        components.setdefault(component, {})[name] = layer
    return components, flat


def _parts(
    path: Path, tensors: Mapping[str, Tensor], component_names: tuple[str, ...]
) -> tuple[dict[tuple[str, str], dict[str, Tensor]], bool]:
    """Return the tensors of each layer by part, by (component, layer), and whether the layer names are flat."""
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    keys: dict[tuple[str, str, str], str] = {}
    adapters: dict[str, str] = {}
    flat: dict[bool, str] = {}
    unused = []
    for key, tensor in tensors.items():
        name = parse(path, key, component_names)
        if name.component is None or name.part is None:
            unused.append(key)
            continue
        earlier = keys.setdefault((name.component, name.layer, name.part), key)
        if earlier != key:
            raise DsctlError(
                f"{path} has {name.layer} twice, as {earlier} and as {key}", hint="check where the file comes from"
            )
        flat.setdefault(name.flat, key)
        if name.adapter is not None:
            adapters.setdefault(name.adapter, key)
        parts.setdefault((name.component, name.layer), {})[name.part] = tensor
    if len(flat) > 1:
        raise DsctlError(
            f"{path} mixes two formats of LoRA keys: {flat[True]} and {flat[False]}",
            hint="check where the file comes from",
        )
    if len(adapters) > 1:
        raise DsctlError(
            f"{path} holds {len(adapters)} adapters: {', '.join(sorted(adapters))}", hint="save them to a file each"
        )
    if unused:
        shown = ", ".join(unused[:UNUSED]) + (f" and {len(unused) - UNUSED} more" if len(unused) > UNUSED else "")
        logger.warning("%s: its parts for text encoders or embeddings are not used: %s", path, shown)
    if all(of.keys() <= {"alpha", "magnitude", DORA_SCALE} for of in parts.values()):
        raise DsctlError(
            f"{path} has no LoRA layers{' on a model that is known here' if unused else ''}",
            hint="check that this is the file you meant",
        )
    return parts, True in flat


def _lora_layer(path: Path, name: str, parts: dict[str, Tensor], scale_of: Callable[[str, int], float]) -> LoraLayer:
    """Return the layer `name` made of its tensors by part; raise DsctlError if they do not fit each other."""
    missing = {"down", "up"} - parts.keys()
    if missing:
        what = "an alpha" if parts.keys() == {"alpha"} else "a magnitude" if len(missing) == 2 else None
        raise DsctlError(
            f"{path} has {what} for {name}, but no matrices"
            if what
            else f"{path} has only one of the two matrices of {name}",
            hint="download or copy it again",
        )
    down, up, alpha = parts["down"], parts["up"], parts.get("alpha")
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or down.shape[0] == 0:
        raise DsctlError(
            f"{path}: the matrices of {name} do not fit each other: {tuple(down.shape)} and {tuple(up.shape)}",
            hint="download or copy it again",
        )
    if alpha is None:
        return LoraLayer(down, up, scale_of(name, down.shape[0]))
    if alpha.numel() != 1:
        raise DsctlError(
            f"{path}: the alpha of {name} is {tuple(alpha.shape)}, not one number", hint="download or copy it again"
        )
    return LoraLayer(down, up, float(alpha) / down.shape[0])


def _magnitude(path: Path, name: str, parts: dict[str, Tensor], layer: Update) -> Tensor | None:
    """Return the norms of the rows, (out,), that belong to `layer`; raise DsctlError for norms of something else."""
    magnitude, scale, rows = parts.get("magnitude"), parts.get(DORA_SCALE), layer.shape[0]
    if scale is not None and magnitude is None:
        if scale.shape[0] != rows and scale.numel() == layer.shape[1]:
            raise DsctlError(
                f"{path}: the {DORA_SCALE} of {name} has the norms of the columns of the weight, not of its rows",
                hint="train it with norms of the outputs (wd_on_output), or give one without weight decomposition",
            )
        magnitude = scale.flatten() if scale.shape[0] == scale.numel() else scale
    if magnitude is not None and magnitude.shape != (rows,):
        raise DsctlError(
            f"{path}: the magnitude of {name} is {tuple(magnitude.shape)}, not ({rows},)",
            hint="download or copy it again",
        )
    return magnitude


def format_of(keys: Iterable[str], in_folder: bool) -> str:
    """Return the name of the format of the tensor names `keys`; variants of other tools count as the nearest format."""
    names = list(keys)
    if in_folder or any(key.startswith("base_model.model.") for key in names):
        return "peft"
    if any(key.startswith(FLAT_PREFIXES) for key in names):
        return "lycoris" if all(key.startswith("lycoris_") for key in names) else "kohya"
    if any(PRODUCT.search(key) for key in names):
        return "comfyui" if any(key.endswith(".alpha") for key in names) else "diffusers"
    if any(re.search(r"\.lora_[AB]\.[^.]+\.weight$", key) for key in names):
        return "diffsynth"
    return "comfyui" if any(".lora_down." in key for key in names) else "diffusers"


def with_dots(lora: LoraFile, component: str, module_names: Iterable[str]) -> Layers:
    """Return the layers of `component` with the names of the model, which has the modules `module_names`.

    Names that are not flat are unchanged, and so is a flat name that matches no module.
    """
    layers = lora.components.get(component, {})
    if not lora.flat:
        return layers
    dotted: dict[str, str] = {}
    for name in module_names:
        flat = name.replace(".", "_")
        if flat in layers and dotted.setdefault(flat, name) != name:
            raise DsctlError(
                f"{lora.path}: {flat} can be {dotted[flat]} or {name}", hint="give the LoRA in another format"
            )
    return {dotted.get(name, name): layer for name, layer in layers.items()}
