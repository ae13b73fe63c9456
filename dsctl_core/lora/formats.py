"""Define the LoRA formats of several tools, one table row each, and convert between tensor names and layers.

For each layer a LoRA file holds down (R, in) and up (out, R); the update is scale * up @ down with scale = alpha / R.
The formats differ in the prefix of layer names, in the names of the two matrices, and in the location of alpha: folded
into the up matrix (so that a reader that ignores alpha applies the right strength), in a separate tensor
`<layer>.alpha`, or in a separate file. A DoRA has a third tensor per layer, the magnitude (out,), which has a name only
in the formats of diffusers and peft.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dsctl_core.errors import DsctlError
from dsctl_core.family import OriginalNames

if TYPE_CHECKING:
    from torch import Tensor

DENOISER = "dit"


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
    alpha: Literal["folded", "tensor", "config"]
    flat: bool = False  # dots in layer names become underscores
    magnitude: str | None = None  # name of the magnitude of a DoRA; None: this tool cannot read a DoRA
    dora_prefix: str | None = None  # prefix of the layers of a DoRA, if it is not `prefix`
    folder: bool = False  # a folder with adapter_model.safetensors and adapter_config.json, instead of one file
    original: bool = False  # with the layer names of the original release of a model, if it has such names

    def key(self, layer: str, part: str) -> str:
        """Return the tensor name of `part` of `layer`."""
        return f"{self.prefix}{layer.replace('.', '_') if self.flat else layer}.{part}"


MAGNITUDE = "lora_magnitude_vector"
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
        LoraFormat(
            "peft", "base_model.model.", "lora_A.weight", "lora_B.weight", "config", magnitude=MAGNITUDE, folder=True
        ),
    )
}
# Prefixes of the layer names of the denoiser, in our files and in those of other tools; longer ones first.
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_")
READ_PREFIXES = ("transformer.base_model.model.", "diffusion_model.", "transformer.", "base_model.model.", "pipe.dit.")
KEY = re.compile(
    r"^(?P<layer>.+)\.(?P<part>(?:lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)(?=(?:\.default)?\.weight$)"
    r"|lora_magnitude_vector(?=(?:\.default)?(?:\.weight)?$))"
)
DOWN, UP = ("lora_A", "lora_down", "lora.down"), ("lora_B", "lora_up", "lora.up")
# Other kinds of adapters, recognized by a part of their tensor names.
OTHER_KINDS = {"lokr_": "LoKr", "hada_": "LoHa", "dora_scale": "kohya's DoRA", "oft_": "OFT"}


def format_for(form: str, original: OriginalNames | None) -> LoraFormat:
    """Return the format `form`, with the prefix that diffusers expects for a model with `original` names."""
    chosen = FORMATS[form]
    if form != "diffusers" or original is None or original.diffusers_prefix is None:
        return chosen
    return replace(chosen, prefix=original.diffusers_prefix)


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

    `component_names` are the possible prefixes of layer names; a layer without prefix belongs to the denoiser.
    `scale_of` returns the scale for (layer, rank) where `tensors` has no alpha. `path` is for messages.
    """
    names = tuple(component_names)
    halves: dict[tuple[str, str], dict[str, Tensor]] = {}
    alphas: dict[tuple[str, str], float] = {}
    flat = dotted = 0
    for key, tensor in tensors.items():
        component, bare, is_flat = _split(key, names)
        flat, dotted = flat + is_flat, dotted + (not is_flat)
        if bare.endswith(".alpha"):
            alphas[component, bare.removesuffix(".alpha")] = float(tensor)
            continue
        match = KEY.match(bare)
        if match is None:
            raise _no_lora(path, key)
        part = "down" if match["part"] in DOWN else "up" if match["part"] in UP else "magnitude"
        halves.setdefault((component, match["layer"]), {})[part] = tensor
    if not halves:
        raise DsctlError(f"{path} has no LoRA layers", hint="check that this is the file you meant")
    if flat and dotted:
        raise DsctlError(f"{path} mixes two formats of LoRA keys", hint="check where the file comes from")
    components: dict[str, Layers] = {}
    for (component, layer), parts in halves.items():
        magnitude = parts.pop("magnitude", None)
        if set(parts) != {"down", "up"}:
            raise DsctlError(f"{path} has only one of the two matrices of {layer}", hint="download or copy it again")
        down, up = parts["down"], parts["up"]
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
            raise DsctlError(
                f"{path}: the matrices of {layer} do not fit each other: {tuple(down.shape)} and {tuple(up.shape)}",
                hint="download or copy it again",
            )
        if magnitude is not None and magnitude.shape != up.shape[:1]:
            raise DsctlError(
                f"{path}: the magnitude of {layer} is {tuple(magnitude.shape)}, not ({up.shape[0]},)",
                hint="download or copy it again",
            )
        scale = scale_of(layer, down.shape[0])
        if (component, layer) in alphas:
            scale = alphas.pop((component, layer)) / down.shape[0]
        components.setdefault(component, {})[layer] = LoraLayer(down, up, scale, magnitude)
    if alphas:
        raise DsctlError(
            f"{path} has an alpha for {next(iter(alphas))[1]}, but no matrices", hint="download or copy it again"
        )
    return components, flat > 0


def _no_lora(path: Path, key: str) -> DsctlError:
    for part, kind in OTHER_KINDS.items():
        if part in key:
            return DsctlError(
                f"{path} is a {kind} adapter ({key}), which cannot be read here", hint="give a plain LoRA"
            )
    return DsctlError(
        f"{path} is no LoRA that can be read here: its tensor {key!r} is not a LoRA matrix",
        hint=f"give a LoRA in one of the formats {', '.join(FORMATS)}",
    )


def _split(key: str, component_names: tuple[str, ...]) -> tuple[str, str, bool]:
    """Return the component of the tensor name `key`, the name without prefix, and whether it is flat."""
    for prefix in FLAT_PREFIXES:
        if key.startswith(prefix):
            return DENOISER, key.removeprefix(prefix), True
    for prefix in READ_PREFIXES:
        if key.startswith(prefix):
            return DENOISER, key.removeprefix(prefix), False
    for name in component_names:
        for prefix in (f"{name}.", f"pipe.{name}."):
            if key.startswith(prefix):
                return name, key.removeprefix(prefix), False
    return DENOISER, key, False


def format_of(keys: Iterable[str], in_folder: bool) -> str:
    """Return the name of the format of the tensor names `keys`; variants of other tools count as the nearest format."""
    names = list(keys)
    if in_folder or any(key.startswith("base_model.model.") for key in names):
        return "peft"
    if any(key.startswith(FLAT_PREFIXES) for key in names):
        return "kohya"
    if any(".default.weight" in key for key in names):
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
