"""Define the LoRA formats of several tools, one table row each, and convert between tensor names and layers.

For each layer a LoRA file holds down (R, in) and up (out, R); the update is scale * up @ down with scale = alpha / R.
The formats differ in the prefix of layer names, in the names of the two matrices, and in the location of alpha: folded
into the up matrix (so that a reader that ignores alpha applies the right strength), or in a separate tensor
`<layer>.alpha`. A DoRA has a third tensor per layer, the magnitude (out,), which has a name only
in the formats of diffusers and peft.
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
from dsctl_core.lora.names import DENOISER, FLAT_PREFIXES, parse

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoraLayer:
    """The update of one layer: scale * up @ down, with down (R, in) and up (out, R).

    With a `magnitude` (out,) the layer is a DoRA; see dsctl_core.lora.dora.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """The rank R of the update."""
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (out, in) of the weight that this layer updates."""
        return self.up.shape[0], self.down.shape[1]


Layers = dict[str, LoraLayer]  # by the name of the layer in the component


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
    dora_prefix: str | None = None  # prefix of the layers of a DoRA, if it is not `prefix`
    folder: bool = False  # a folder with adapter_model.safetensors and adapter_config.json, instead of one file
    original: bool = False  # with the layer names of the original release of a model, if it has such names

    def key(self, layer: str, part: str) -> str:
        """Return the tensor name of `part` of `layer`."""
        return f"{self.prefix}{layer.replace('.', '_') if self.flat else layer}.{part}"


MAGNITUDE = "lora_magnitude_vector"
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
            dora_prefix="transformer.",
        ),
        LoraFormat("comfyui", "diffusion_model.", "lora_down.weight", "lora_up.weight", "tensor", original=True),
        LoraFormat("kohya", "lora_unet_", "lora_down.weight", "lora_up.weight", "tensor", flat=True, original=True),
        LoraFormat("diffsynth", "", "lora_A.default.weight", "lora_B.default.weight", "folded"),
        # peft reads alpha from adapter_config.json, which other readers of the folder do not all do: alpha is the rank.
        LoraFormat(
            "peft", "base_model.model.", "lora_A.weight", "lora_B.weight", "folded", magnitude=MAGNITUDE, folder=True
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
        form = replace(form, prefix=f"{component}.", dora_prefix=None)
    if any(layer.magnitude is not None for layer in layers.values()):
        if form.magnitude is None:
            able = ", ".join(each.name for each in FORMATS.values() if each.magnitude is not None)
            raise DsctlError(f"the format {form.name} cannot hold a DoRA", hint=f"write it as {able}")
        form = replace(form, prefix=form.dora_prefix or form.prefix)
    tensors = {}
    for name, layer in layers.items():
        folded = layer.scale if form.alpha == "folded" else 1.0
        tensors[form.key(name, form.down)] = layer.down.detach().float().cpu().clone()  # layers may share a down matrix
        tensors[form.key(name, form.up)] = layer.up.detach().float().cpu() * folded
        if layer.magnitude is not None and form.magnitude is not None:
            tensors[form.key(name, form.magnitude)] = layer.magnitude.detach().float().cpu().clone()
        if form.alpha == "tensor":
            tensors[form.key(name, "alpha")] = torch.tensor(layer.scale * layer.rank)
    return tensors


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
    parts, flat = _parts(path, tensors, tuple(component_names))
    components: dict[str, Layers] = {}
    for (component, name), of in parts.items():
        components.setdefault(component, {})[name] = _layer(path, name, of, scale_of)
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
    if not any({"down", "up"} & of.keys() for of in parts.values()):
        raise DsctlError(
            f"{path} has no LoRA layers{' on a model that is known here' if unused else ''}",
            hint="check that this is the file you meant",
        )
    return parts, True in flat


def _layer(path: Path, name: str, parts: dict[str, Tensor], scale_of: Callable[[str, int], float]) -> LoraLayer:
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
    down, up, magnitude, alpha = parts["down"], parts["up"], parts.get("magnitude"), parts.get("alpha")
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or down.shape[0] == 0:
        raise DsctlError(
            f"{path}: the matrices of {name} do not fit each other: {tuple(down.shape)} and {tuple(up.shape)}",
            hint="download or copy it again",
        )
    if magnitude is not None and magnitude.shape != up.shape[:1]:
        raise DsctlError(
            f"{path}: the magnitude of {name} is {tuple(magnitude.shape)}, not ({up.shape[0]},)",
            hint="download or copy it again",
        )
    if alpha is None:
        return LoraLayer(down, up, scale_of(name, down.shape[0]), magnitude)
    if alpha.numel() != 1:
        raise DsctlError(
            f"{path}: the alpha of {name} is {tuple(alpha.shape)}, not one number", hint="download or copy it again"
        )
    return LoraLayer(down, up, float(alpha) / down.shape[0], magnitude)


def format_of(keys: Iterable[str], in_folder: bool) -> str:
    """Return the name of the format of the tensor names `keys`; variants of other tools count as the nearest format."""
    names = list(keys)
    if in_folder or any(key.startswith("base_model.model.") for key in names):
        return "peft"
    if any(key.startswith(FLAT_PREFIXES) for key in names):
        return "kohya"
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
