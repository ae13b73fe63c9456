"""Convert between diffusers' layer names and those of the original release of a model, which some tools use.

Originally the three projections into attention are one layer, `qkv`, in some models with that into the feed-forward.
Their updates are fused without loss: with the down matrices stacked and the up matrices as diagonal blocks, the product
is the updates stacked. So are both products of a LoHa, and with them their elementwise product. LoKrs stacked are no
LoKr; rows of one can be taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dsctl_core.errors import DsctlError
from dsctl_core.family import OriginalNames
from dsctl_core.lora.formats import Layers
from dsctl_core.lora.layer import LoraLayer, Update
from dsctl_core.lora.lycoris import LohaLayer

if TYPE_CHECKING:
    from torch import Tensor


def to_original(layers: Layers, names: OriginalNames, form: str) -> Layers:
    """Return `layers` with original names; raise DsctlError for a layer without one. `form` is the format to write."""
    ours = {pattern: original for original, pattern in names.single.items()}
    parts = {part: original for original, of in names.fused.items() for part in of}
    made: Layers = {}
    groups: dict[str, tuple[dict[str, int], dict[str, Update]]] = {}
    for name, layer in layers.items():
        pattern, number = (name, "") if name in ours else _without_number(name)
        if pattern in ours:
            swapped = ours[pattern] in names.swapped
            made[_numbered(ours[pattern], number)] = layer.rolled(layer.shape[0] // 2) if swapped else layer
        elif pattern in parts:
            original = parts[pattern]
            order = {_numbered(part, number): share for part, share in _shares(names, original).items()}
            groups.setdefault(_numbered(original, number), (order, {}))[1][name] = layer
        else:
            raise DsctlError(
                f"the format {form} has no name for the layer {name}", hint="write it as diffusers, or leave it out"
            )
    made |= {name: _fuse(order, group, form) for name, (order, group) in groups.items()}
    return made


def from_original(
    layers: Layers, layouts: Iterable[OriginalNames | None], *, flat: bool, path: Path | None = None
) -> Layers:
    """Return `layers` with diffusers' names if some of them have original names of one of `layouts`, else unchanged.

    A layout with other sizes than those of the layers is left out. `flat` means that the names in `layers` have
    underscores instead of dots; converted names have dots. `path` is the file, for messages. Raises DsctlError for a
    layer that is there under both names.
    """
    for names in filter(None, layouts):
        originals: dict[re.Pattern[str], dict[str, int]] = {}
        originals |= {_matcher(original, flat): {ours: 1} for original, ours in names.single.items()}
        originals |= {_matcher(original, flat): _shares(names, original) for original in names.fused}
        swapped = {_matcher(original, flat) for original in names.swapped}
        shared = {_matcher(original, flat) for original, ours in names.single.items() if original == ours}
        found: Layers = {}
        ratios = {_matcher(original, flat): ratio for original, ratio in names.ratios.items()}
        twice: dict[str, str] = {}
        certain = in_blocks = strangers = misfits = 0
        for name, layer in layers.items():
            match, ours = next(((m, o) for matcher, o in originals.items() if (m := matcher.match(name))), (None, {}))
            if match is None:
                strangers += 1
                more: Layers = {name: layer}
            else:
                outputs, inputs = ratios.get(match.re, layer.shape)
                misfits += layer.shape[0] * inputs != layer.shape[1] * outputs
                # A name in a block that both layouts have is no sign, unless all layers have names of this layout.
                in_blocks += len(match.groups())
                certain += len(match.groups()) if match.re not in shared else 0
                number = match[1] if match.groups() else ""
                targets = {_numbered(pattern, number): share for pattern, share in ours.items()}
                if len(targets) == 1:
                    half = layer.shape[0] // 2
                    more = {next(iter(targets)): layer.rolled(half) if match.re in swapped else layer}
                else:
                    more = _split(targets, layer)
            twice.update(dict.fromkeys(found.keys() & more.keys(), name))
            found |= more
        if not misfits and (certain or (in_blocks and not strangers)):
            if twice:
                again, name = next(iter(twice.items()))
                raise DsctlError(
                    f"{path or 'the LoRA'} has {again} twice, once as {name}", hint="check where the file comes from"
                )
            return found
    return layers


def _without_number(name: str) -> tuple[str, str]:
    """Return `name` with `{}` instead of the number of its block, and that number, "" if there is none.

    The number of a block is the second part of a name of at least three: `layers.3.attention.to_q`.
    """
    stack, _, rest = name.partition(".")
    number, _, inside = rest.partition(".")
    return (f"{stack}.{{}}.{inside}", number) if inside and number.isdigit() else (name, "")


def _numbered(pattern: str, number: str) -> str:
    return pattern.replace("{}", number)


def _matcher(pattern: str, flat: bool) -> re.Pattern[str]:
    text = pattern.replace(".", "_") if flat else pattern
    return re.compile("^" + re.escape(text).replace(r"\{\}", r"(\d+)") + "$")


def _shares(names: OriginalNames, original: str) -> dict[str, int]:
    """Return the parts of a fused layer in order, each with its multiple of their common size."""
    parts = names.fused[original]
    return dict(zip(parts, names.shares.get(original, (1,) * len(parts)), strict=True))


def _spans(shares: Iterable[int], unit: int) -> list[slice]:
    """Return the rows of each part of a fused layer, of which `shares` are multiples of `unit` rows."""
    spans, first = [], 0
    for share in shares:
        spans.append(slice(first, first + share * unit))
        first += share * unit
    return spans


def _fuse(order: Mapping[str, int], group: Mapping[str, Update], form: str) -> Update:
    """Return one layer with the updates of `group` stacked in the given `order`; a missing one is zero.

    `order` has the share of each part in the rows. All parts get the same share of the rank, so that readers can split
    them again. Raises DsctlError for LoKrs, and for updates of several networks.
    """
    networks = {layer.network for layer in group.values()}
    if networks not in ({"lora"}, {"loha"}):
        raise DsctlError(
            f"the format {form} has one layer for {', '.join(order)}, and their updates together are no LoKr",
            hint="write it as diffusers or lycoris, which have a layer for each",
        )
    scales = {name: layer.scale for name, layer in group.items()}
    stacked = []
    for number in range(len(_products(next(iter(group.values()))))):
        # The scale is a factor of one of the products, the first.
        own = {name: (*_products(layer)[number], 1.0 if number else scales[name]) for name, layer in group.items()}
        stacked.append(_stacked(order, own))
    if networks == {"lora"}:
        ((up, down),) = stacked
        return LoraLayer(down, up)
    return LohaLayer(stacked[0], stacked[1])


def _stacked(order: Mapping[str, int], group: Mapping[str, tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor]:
    """Return two matrices whose product is `scale * left @ right` of each (left, right, scale), stacked."""
    import torch

    known, (left, right, _) = next(iter(group.items()))
    unit, columns = left.shape[0] // order[known], right.shape[1]
    rank = max(right.shape[0] for _, right, _ in group.values())
    rights = right.new_zeros((len(order) * rank, columns), dtype=torch.float32)
    lefts = left.new_zeros((sum(order.values()) * unit, len(order) * rank), dtype=torch.float32)
    for place, (name, rows) in enumerate(zip(order, _spans(order.values(), unit), strict=True)):
        if name in group:
            left, right, scale = group[name]
            rights[place * rank : place * rank + len(right)] = right.detach()
            lefts[rows, place * rank : place * rank + len(right)] = left.detach().float() * scale
    return lefts, rights


def _split(names: Mapping[str, int], layer: Update) -> Layers:
    """Undo `_fuse`. If the left matrix is not block-diagonal, every part has the whole right matrix."""
    count = len(names)
    rows = _spans(names.values(), layer.shape[0] // sum(names.values()))
    whole = dict(zip(names, (layer.rows(each.start, each.stop) for each in rows), strict=True))
    if layer.rank is None or layer.rank % count or layer.magnitude is not None:
        return dict(whole)
    share = layer.rank // count
    spans = {name: slice(place * share, (place + 1) * share) for place, name in enumerate(names)}
    products = {name: _products(part) for name, part in whole.items()}
    for name, of in products.items():
        if not of or any(left[:, other].any() for left, _ in of for each, other in spans.items() if each != name):
            return dict(whole)
    parts: Layers = {}
    for name, of in products.items():
        own = [(left[:, spans[name]], right[spans[name]]) for left, right in of]
        used = max(_used(right, left) for left, right in own)
        if used:
            small = [(left[:, :used].contiguous(), right[:used].contiguous()) for left, right in own]
            parts[name] = _with_products(whole[name], small)
    return parts


def _products(layer: Update) -> list[tuple[Tensor, Tensor]]:
    """Return the low-rank products (left, right) that `layer` is made of, all of one rank; none for a LoKr."""
    if isinstance(layer, LoraLayer):
        return [(layer.up, layer.down)]
    return (
        [(layer.first[0], layer.first[1]), (layer.second[0], layer.second[1])] if isinstance(layer, LohaLayer) else []
    )


def _with_products(layer: Update, products: Sequence[tuple[Tensor, Tensor]]) -> Update:
    if isinstance(layer, LoraLayer):
        ((up, down),) = products
        return replace(layer, down=down, up=up)
    first, second = products
    return LohaLayer(first, second, layer.scale, layer.magnitude)


def _used(down: Tensor, up: Tensor) -> int:
    """Return the rank without the zero padding at its end."""
    holds = (down != 0).any(dim=1) | (up != 0).any(dim=0)
    return int(holds.nonzero().max()) + 1 if bool(holds.any()) else 0
