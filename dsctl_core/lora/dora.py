"""Compute the updates of DoRA, a LoRA with a learned norm for each row (Liu et al. 2024, arXiv:2402.09353).

W' = m * V / |V| with V = W + scale * up @ down, where |V| are the norms of the rows of V, and the magnitude m, (out,),
is learned. With a strength c the weight is W + c * (W' - W): 0 is the base weight and 1 the trained weight. In files of
LyCORIS the update can also be that of a LoKr or a LoHa.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dsctl_core.errors import DsctlError
from dsctl_core.lora.formats import Layers
from dsctl_core.lora.layer import LoraLayer, Update

if TYPE_CHECKING:
    from torch import Tensor


def row_norms(weight: Tensor) -> Tensor:
    """Return the L2 norms of the rows of `weight` (out, in), (out,) in float32."""
    import torch

    return torch.linalg.norm(weight.float(), dim=1)


def update_of(weight: Tensor, layer: Update, strength: float = 1.0) -> Tensor:
    """Return the update of `layer` with `strength` for `weight` (out, in), in float32.

    `weight` can be a range of rows of the whole weight; `layer` is then that of the same rows.
    """
    update = layer.mapped(lambda tensor: tensor.to(weight.device).float()).matrix()
    if layer.magnitude is None:
        return update * (strength * layer.scale)
    base = weight.float()
    turned = base + layer.scale * update
    gain = layer.magnitude.to(weight.device).float() / row_norms(turned)
    return strength * (gain[:, None] * turned - base)


def with_strength(weight: Tensor, layer: LoraLayer, strength: float) -> LoraLayer:
    """Return a DoRA that at full strength has the same effect on `weight` as `layer` at `strength`.

    With the row gains g = m / |V|, the rows of W + c (W' - W) are h W + c g scale (up @ down) with h = 1 + c (g - 1):
    h times W plus a low-rank update. This is again a DoRA, with the magnitude h times the row norms.
    """
    if layer.magnitude is None or strength == 1:
        return layer
    base, up, down = weight.float(), layer.up.float(), layer.down.float()
    gain = layer.magnitude.float() / row_norms(base + layer.scale * (up @ down))
    rest = 1 + strength * (gain - 1)
    raised = up * (strength * gain / rest)[:, None]
    return replace(layer, up=raised, magnitude=rest * row_norms(base + layer.scale * (raised @ down)))


def refuse_dora(layers: Layers, what: str) -> None:
    """Raise an error if one of `layers` is a DoRA: its update has full rank and depends on the base weight.

    `what` is the operation for the message, such as "merged into a LoRA".
    """
    for name, layer in layers.items():
        if layer.magnitude is not None:
            raise DsctlError(
                f"a DoRA cannot be {what}: the magnitude of {name} rescales rows of the base itself",
                hint="merge it into the model: dsctl merge-lora --model M --lora FILE --output FOLDER",
            )
