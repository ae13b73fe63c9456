"""Add and truncate low-rank updates without forming the full matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsctl_core.errors import DsctlError
from dsctl_core.lora.dora import refuse_dora
from dsctl_core.lora.formats import Layers
from dsctl_core.lora.layer import LoraLayer, Update
from dsctl_core.lora.lycoris import as_lora, exact_rank

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RankTruncation:
    """The share of the squared Frobenius norm that a truncation kept: of all layers together and of the worst layer."""

    share: float
    worst_share: float
    worst_layer: str


def add_layers(parts: Sequence[tuple[LoraLayer, float]]) -> LoraLayer:
    """Return the weighted sum of (layer, weight) pairs, exactly; its rank is the sum of their ranks.

    sum_i c_i s_i B_i A_i = [c_1 s_1 B_1, c_2 s_2 B_2, ...] @ [A_1; A_2; ...].
    """
    import torch

    shapes = {layer.shape for layer, _ in parts}
    if len(shapes) > 1:
        raise DsctlError(
            f"the LoRAs are for different models: one layer is {' and '.join(f'{a}x{b}' for a, b in sorted(shapes))}",
            hint="merge LoRAs of one model",
        )
    down = torch.cat([layer.down.float() for layer, _ in parts])
    up = torch.cat([layer.up.float() * (layer.scale * number) for layer, number in parts], dim=1)
    return LoraLayer(down, up)


def truncate(layer: LoraLayer, rank: int) -> tuple[LoraLayer, float, float]:
    """Return the best approximation of rank `rank`, its squared norm, and that of the whole update (Eckart-Young).

    QR of both factors reduces the SVD to that of an R x R matrix. Each factor gets the square root of the singular
    values. An update of a lower rank is padded with zeros to `rank`.
    """
    import torch

    up, down = layer.up.double() * layer.scale, layer.down.double()
    left, left_rest = torch.linalg.qr(up)
    right, right_rest = torch.linalg.qr(down.T)
    u, singular, vh = torch.linalg.svd(left_rest @ right_rest.T)
    return _from_svd(left @ u, singular, (right @ vh.T).T, rank)


def from_difference(delta: Tensor, rank: int) -> tuple[LoraLayer, float, float]:
    """Return the best update of rank `rank` for `delta` (out, in), its squared norm, and that of `delta`."""
    import torch

    small = min(delta.shape)
    if small <= 4 * rank or small <= 512:
        u, singular, vh = torch.linalg.svd(delta.double(), full_matrices=False)
        return _from_svd(u, singular, vh, rank)
    # Randomized SVD (Halko, Martinsson, Tropp 2011, arXiv:0909.4061): power iterations find the leading subspace.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, singular, v = torch.svd_lowrank(delta.float(), q=min(small, rank + 16), niter=6)
    layer, kept, _ = _from_svd(u, singular, v.T, rank)
    return layer, kept, float(delta.double().square().sum())


def _from_svd(u: Tensor, singular: Tensor, vh: Tensor, rank: int) -> tuple[LoraLayer, float, float]:
    import torch

    count = min(rank, len(singular))
    root = singular[:count].sqrt()
    up, down = (u[:, :count] * root).float(), (root[:, None] * vh[:count]).float()
    if count < rank:
        up = torch.cat([up, up.new_zeros(up.shape[0], rank - count)], dim=1)
        down = torch.cat([down, down.new_zeros(rank - count, down.shape[1])])
    energy = singular.double().square()
    return LoraLayer(down.contiguous(), up.contiguous()), float(energy[:count].sum()), float(energy.sum())


def resize_layers(layers: Layers, rank: int) -> tuple[Layers, RankTruncation]:
    """Return every layer truncated or padded to `rank`, and the share of the norm that is kept.

    A layer of a LoKr or a LoHa becomes that of the LoRA that is nearest to it. Raises DsctlError for a rank that no
    layer has room for, with which the LoRA would be larger than the weights; see `as_lora`.
    """
    refuse_dora(layers, "resized")
    name, widest = max(layers.items(), key=lambda item: min(item[1].shape))
    if rank > min(widest.shape) or (rank == min(widest.shape) and not isinstance(widest, LoraLayer)):
        raise DsctlError(
            f"no layer has a LoRA of rank {rank} that is smaller than its weight: the largest weight, of {name}, is "
            f"{widest.shape[0]}x{widest.shape[1]}",
            hint=f"give a rank below {min(widest.shape)}",
        )
    return collect_kept({name: _nearest(name, layer, rank) for name, layer in layers.items()})


def _nearest(name: str, layer: Update, rank: int) -> tuple[LoraLayer, float, float]:
    if isinstance(layer, LoraLayer) or exact_rank(layer) < min(layer.shape):
        return truncate(as_lora(name, layer), rank)
    return from_difference(layer.mapped(lambda tensor: tensor.float()).matrix() * layer.scale, rank)


def collect_kept(parts: dict[str, tuple[LoraLayer, float, float]]) -> tuple[Layers, RankTruncation]:
    """Return the layers of the truncations by name, and the share of the norm that they keep."""
    shares = {name: kept / total if total > 0 else 1.0 for name, (_, kept, total) in parts.items()}
    total = sum(each for _, _, each in parts.values())
    share = sum(kept for _, kept, _ in parts.values()) / total if total > 0 else 1.0
    worst = min(shares, key=lambda name: shares[name])
    return {name: part[0] for name, part in parts.items()}, RankTruncation(share, shares[worst], worst)
