"""LoRA files: which tensor belongs to which layer of which component.

Written: `diffusion_model.<layer>.lora_A.weight` (R, in) and `.lora_B.weight` (out, R) for the denoiser, which
diffusers' `load_lora_weights` takes whole; for another component its name stands in front. Alpha is folded into
lora_B, so a reader that knows nothing of alpha still gets the right strength.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dsctl_core.checkpoint.files import read_safetensors
from dsctl_core.errors import DsctlError

if TYPE_CHECKING:
    from torch import Tensor

DENOISER = "dit"
WRITTEN_PREFIX = "diffusion_model."
# Prefixes that other tools put in front of the denoiser's layer names.
READ_PREFIXES = ("diffusion_model.", "transformer.", "base_model.model.", "pipe.dit.")
KEY = re.compile(r"^(?P<layer>.+)\.(?P<part>lora_A|lora_B|lora_down|lora_up)(?:\.default)?\.weight$")


@dataclass(frozen=True)
class LoraLayer:
    """One layer's update: scale * up @ down, with down (R, in) and up (out, R)."""

    down: Tensor
    up: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """The rank R of the update."""
        return self.down.shape[0]


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as read from a file: the layers by name for each component, and the header's metadata."""

    path: Path
    components: dict[str, dict[str, LoraLayer]]
    metadata: dict[str, str] = field(default_factory=dict)


def prefix_of(component: str) -> str:
    """Return what stands in front of a component's layer names in a file."""
    return WRITTEN_PREFIX if component == DENOISER else f"{component}."


def read_lora(path: Path, component_names: tuple[str, ...] = (DENOISER,)) -> LoraFile:
    """Read a LoRA file whose layers belong to the components named; without a prefix they are the denoiser's.

    Raises DsctlError for a file that is damaged, no LoRA, or has a layer with only one of its two matrices.
    """
    tensors, metadata = read_safetensors(path)
    halves: dict[tuple[str, str], dict[str, Tensor]] = {}
    alphas: dict[tuple[str, str], float] = {}
    for key, tensor in tensors.items():
        component, bare = _split_component(key, component_names)
        if bare.endswith(".alpha"):
            alphas[component, bare.removesuffix(".alpha")] = float(tensor)
            continue
        match = KEY.match(bare)
        if match is None:
            raise DsctlError(
                f"{path} is no LoRA that can be read here: its tensor {key!r} is not a LoRA matrix",
                hint="give a LoRA in diffusers' or peft's key names",
            )
        part = {"lora_down": "lora_A", "lora_up": "lora_B"}.get(match["part"], match["part"])
        halves.setdefault((component, match["layer"]), {})[part] = tensor
    if not halves:
        raise DsctlError(f"{path} has no LoRA layers", hint="check that this is the file you meant")
    components: dict[str, dict[str, LoraLayer]] = {}
    for (component, layer), parts in halves.items():
        if set(parts) != {"lora_A", "lora_B"}:
            raise DsctlError(f"{path} has only one of the two matrices of {layer}", hint="download or copy it again")
        down, up = parts["lora_A"], parts["lora_B"]
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
            raise DsctlError(
                f"{path}: the matrices of {layer} do not fit each other: {tuple(down.shape)} and {tuple(up.shape)}",
                hint="download or copy it again",
            )
        scale = alphas.get((component, layer), float(down.shape[0])) / down.shape[0]
        components.setdefault(component, {})[layer] = LoraLayer(down, up, scale)
    return LoraFile(path, components, metadata)


def _split_component(key: str, component_names: tuple[str, ...]) -> tuple[str, str]:
    for prefix in READ_PREFIXES:
        if key.startswith(prefix):
            return DENOISER, key.removeprefix(prefix)
    for name in component_names:
        for prefix in (f"{name}.", f"pipe.{name}."):
            if key.startswith(prefix):
                return name, key.removeprefix(prefix)
    return DENOISER, key
