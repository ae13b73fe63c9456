"""DoRA: a LoRA whose rows have a length of their own (Liu et al. 2024, arXiv:2402.09353).

W' = m * V / |V| with V = W + scale * up @ down, where |V| are the norms of V's rows and m, (out,), is learned.
Applied with a strength c the weight is W + c * (W' - W), so that 0 is the base and 1 is what was trained.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dsctl_core.errors import DsctlError
from dsctl_core.lora.formats import Layers, LoraLayer

if TYPE_CHECKING:
    from torch import Tensor


def row_norms(weight: Tensor) -> Tensor:
    """Return the norms of the rows of `weight` (out, in) as (out,), in float32."""
    import torch

    return torch.linalg.norm(weight.float(), dim=1)


def update_of(weight: Tensor, layer: LoraLayer, strength: float = 1.0) -> Tensor:
    """Return what `layer` with `strength` adds to `weight` (out, in), in float32.

    Both may be some rows of the whole: `layer.up` and `layer.magnitude` then have those rows alone.
    """
    update = layer.up.to(weight.device).float() @ layer.down.to(weight.device).float()
    if layer.magnitude is None:
        return update * (strength * layer.scale)
    base = weight.float()
    turned = base + layer.scale * update
    gain = layer.magnitude.to(weight.device).float() / row_norms(turned)
    return strength * (gain[:, None] * turned - base)


def rows_of(layer: LoraLayer, first: int, last: int) -> LoraLayer:
    """Return `layer` for the rows `first` to `last` of its weight."""
    magnitude = None if layer.magnitude is None else layer.magnitude[first:last]
    return replace(layer, up=layer.up[first:last], magnitude=magnitude)


def with_strength(weight: Tensor, layer: LoraLayer, strength: float) -> LoraLayer:
    """Return the DoRA on `weight` that is at full strength what `layer` is at `strength`.

    With the row gains g = m / |V|, the rows of W + c (W' - W) are h W + c g scale (up @ down) with h = 1 + c (g - 1):
    h times W plus a low-rank update, so a DoRA again, with h times the norms for a magnitude.
    """
    if layer.magnitude is None or strength == 1:
        return layer
    base, up, down = weight.float(), layer.up.float(), layer.down.float()
    gain = layer.magnitude.float() / row_norms(base + layer.scale * (up @ down))
    rest = 1 + strength * (gain - 1)
    raised = up * (strength * gain / rest)[:, None]
    return replace(layer, up=raised, magnitude=rest * row_norms(base + layer.scale * (raised @ down)))


def refuse_dora(layers: Layers, what: str) -> None:
    """Refuse to do `what` with a DoRA: its update is not of a low rank, and depends on the base."""
    for name, layer in layers.items():
        if layer.magnitude is not None:
            raise DsctlError(
                f"a DoRA cannot be {what}: the magnitude of {name} rescales rows of the base itself",
                hint="merge it into the model: dsctl merge-lora --model M --lora FILE --output FOLDER",
            )
