"""Define the updates of LoKr and LoHa, products of small matrices, and their names in files of LyCORIS.

LoKr: the Kronecker product w1 (x) w2 of w1 (a, b) and w2 (c, d), for a weight (a * c, b * d). LoHa: the elementwise
(Hadamard) product of two low-rank matrices. Both are of Yeh et al. 2023 (arXiv:2309.14859), and the second one before
of Hyeon-Woo et al. 2021 (arXiv:2108.06098).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import Self

from dsctl_core.errors import DsctlError
from dsctl_core.lora.layer import LoraLayer, Network, Update, changed
from dsctl_core.options.lora import TITLES

if TYPE_CHECKING:
    from torch import Tensor

LOKR_PARTS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
LOHA_PARTS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
Factor = tuple["Tensor", ...]  # a matrix, or two of which it is the product


@dataclass(frozen=True)
class _OfTwoFactors(Update):
    """What LoKr and LoHa have in common: two factors, each a matrix or the product of two."""

    first: Factor
    second: Factor
    scale: float = 1.0
    magnitude: Tensor | None = None

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return this with each tensor changed."""
        first, second = (tuple(map(change, factor)) for factor in (self.first, self.second))
        return replace(self, first=first, second=second, magnitude=changed(self.magnitude, change))

    def with_values(self, *, scale: float, magnitude: Tensor | None) -> Self:
        """Return this with another scale and magnitude."""
        return replace(self, scale=scale, magnitude=magnitude)


@dataclass(frozen=True)
class LokrLayer(_OfTwoFactors):
    """The update of a LoKr: scale * kron(w1, w2), where each of w1 and w2 is one matrix or the product of two.

    With `span` it is only for these rows (first, last) of that product: part of a layer that was one with others.
    """

    network: ClassVar[Network] = "lokr"

    span: tuple[int, int] | None = None

    @property
    def blocks(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The shapes of w1 and of w2."""
        return _shape(self.first), _shape(self.second)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (out, in) of the weight that this updates."""
        (a, b), (c, d) = self.blocks
        return a * c if self.span is None else self.span[1] - self.span[0], b * d

    @property
    def rank(self) -> int | None:
        """The rank of the factor that is a product, of the second one if both are; None if both are whole."""
        low = next((factor for factor in (self.second, self.first) if len(factor) == 2), None)
        return None if low is None else low[0].shape[1]

    def matrix(self) -> Tensor:
        """Return the Kronecker product, (out, in)."""
        import torch

        first, second = _product(self.first), _product(self.second)
        if self.span is None:
            return torch.kron(first, second)
        height = second.shape[0]
        start, end = self.span[0] // height, -(-self.span[1] // height)
        whole = torch.kron(first[start:end], second)
        return whole[self.span[0] - start * height : self.span[1] - start * height]

    def times(self, columns: Tensor) -> Tensor:
        """Return `matrix() @ columns`: w1 and w2 are applied one after the other."""
        import torch

        (_, b), (_, d) = self.blocks
        inner = torch.einsum("cd,bdn->bcn", _product(self.second), columns.reshape(b, d, -1))
        outer = torch.einsum("ab,bcn->acn", _product(self.first), inner).flatten(0, 1)
        return outer if self.span is None else outer[slice(*self.span)]

    def parts(self) -> dict[str, Tensor]:
        """Return the matrices by their names in a file; raise DsctlError for rows that are no LoKr by themselves."""
        if self.span is not None:
            raise DsctlError(
                f"{self.shape[0]} rows of a LoKr, which was put on a layer that is one with others, are no LoKr",
                hint="merge it into the model: dsctl merge-lora --model M --lora FILE --output FOLDER",
            )
        return {**_named("lokr_w1", self.first), **_named("lokr_w2", self.second)}

    def rows(self, first: int, last: int) -> LokrLayer:
        """Return this for a range of rows: with rows of w1 where the range has whole blocks, else with a span."""
        magnitude = changed(self.magnitude, lambda tensor: tensor[first:last])
        offset, height = (0 if self.span is None else self.span[0]), self.blocks[1][0]
        start, end = first + offset, last + offset
        if start % height or end % height:
            return replace(self, span=(start, end), magnitude=magnitude)
        own = (self.first[0][start // height : end // height], *self.first[1:])
        return replace(self, first=own, span=None, magnitude=magnitude)

    def rolled(self, shift: int) -> LokrLayer:
        """Return this with the rows moved: those of w1, where half of them is a whole number of blocks."""
        height = self.blocks[1][0]
        magnitude = changed(self.magnitude, lambda tensor: tensor.roll(shift))
        if self.span is None and shift % height == 0:
            moved = (self.first[0].roll(shift // height, dims=0), *self.first[1:])
            return replace(self, first=moved, magnitude=magnitude)
        return whole_matrix(self.matrix().roll(shift, dims=0), self.scale, magnitude)


@dataclass(frozen=True)
class LohaLayer(_OfTwoFactors):
    """The update of a LoHa: scale * (w1_a @ w1_b) * (w2_a @ w2_b), with w_a (out, R) and w_b (R, in)."""

    network: ClassVar[Network] = "loha"

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (out, in) of the weight that this updates."""
        return _shape(self.first)

    @property
    def rank(self) -> int:
        """The rank R of both products."""
        return self.first[0].shape[1]

    def matrix(self) -> Tensor:
        """Return the elementwise product, (out, in)."""
        return _product(self.first) * _product(self.second)

    def times(self, columns: Tensor) -> Tensor:
        """Return `matrix() @ columns`: for a column x, row i is sum_rs a_ir (B1 diag(x) B2^T)_rs c_is."""
        import torch

        (a, b), (c, d) = self.first, self.second
        inner = torch.einsum("rj,jn,sj->nrs", b, columns, d)
        return torch.einsum("ir,nrs,is->in", a, inner, c)

    def parts(self) -> dict[str, Tensor]:
        """Return the four matrices by their names in a file."""
        return {**_named("hada_w1", self.first), **_named("hada_w2", self.second)}

    def rows(self, first: int, last: int) -> LohaLayer:
        """Return this for a range of rows."""
        return self._with_rows(lambda tensor: tensor[first:last])

    def rolled(self, shift: int) -> LohaLayer:
        """Return this with the rows in the order of `torch.roll`."""
        return self._with_rows(lambda tensor: tensor.roll(shift, dims=0))

    def _with_rows(self, change: Callable[[Tensor], Tensor]) -> LohaLayer:
        first, second = ((change(factor[0]), factor[1]) for factor in (self.first, self.second))
        magnitude = changed(self.magnitude, change)
        return replace(self, first=first, second=second, magnitude=magnitude)


def whole_matrix(matrix: Tensor, scale: float = 1.0, magnitude: Tensor | None = None) -> LokrLayer:
    """Return the LoKr whose matrix is `matrix` (out, in) itself: w1 is the number 1."""
    return LokrLayer((matrix.new_ones(1, 1),), (matrix,), scale, magnitude)


def as_lora(name: str, layer: Update) -> LoraLayer:
    """Return the LoRA with exactly the update of `layer`.

    A LoKr is (A1 B1) (x) (A2 B2) = (A1 (x) A2) (B1 (x) B2), of the rank R1 * R2, where a whole w1 or w2 is its product
    with the identity. A LoHa is (A1 B1) * (A2 B2) = A B, of the rank R^2, where each row of A is the Kronecker product
    of the rows of A1 and A2, and each column of B that of the columns of B1 and B2.

    Raises DsctlError if that rank is not below both sides of the weight, where a LoRA would be larger than the weight.
    """
    import torch

    if isinstance(layer, LoraLayer):
        return layer
    rank = exact_rank(layer)
    if rank >= min(layer.shape):
        raise DsctlError(
            f"{name} has no exact LoRA: its {TITLES[layer.network]} has rank {rank}, and the weight is "
            f"{layer.shape[0]}x{layer.shape[1]}",
            hint="dsctl lora resize FILE --rank R approximates it, and says how much of it is kept",
        )
    layer = layer.mapped(lambda tensor: tensor.float())  # in which products of numbers of 16 bits are exact
    if isinstance(layer, LohaLayer):
        (a, b), (c, d) = layer.first, layer.second
        up = torch.einsum("ir,is->irs", a, c).flatten(1)
        return LoraLayer(torch.einsum("rj,sj->rsj", b, d).flatten(0, 1), up, layer.scale, layer.magnitude)
    assert isinstance(layer, LokrLayer)
    (a, b), (c, d) = _as_pair(layer.first), _as_pair(layer.second)
    up = torch.kron(a, c)
    return LoraLayer(
        torch.kron(b, d), up if layer.span is None else up[slice(*layer.span)], layer.scale, layer.magnitude
    )


def exact_rank(layer: Update) -> int:
    """Return the rank of the LoRA that `as_lora` makes of `layer`."""
    if isinstance(layer, LokrLayer):
        return prod(min(*_shape(each), each[0].shape[1]) for each in (layer.first, layer.second))
    rank = layer.rank or 0
    return rank if isinstance(layer, LoraLayer) else rank * rank


def from_parts(path: object, name: str, parts: Mapping[str, Tensor], dimension_of_whole: bool = False) -> Update | None:
    """Return the update of the layer `name` that has the tensors `parts` of a LoKr or a LoHa; None if it has none.

    Its scale is alpha / R, and 1 where there is no alpha, or no factor of a LoKr is a product. With
    `dimension_of_whole` a whole w2 has the longer of its sides for R, as in files with a `lokr_factor`. The middle
    matrices t of a kernel of size 1 are multiplied into their left neighbours.

    Raises DsctlError for parts that are missing or do not fit each other, and for a kernel of another size.
    """
    kind = next((kind for kind in (LOKR_PARTS, LOHA_PARTS) if not parts.keys().isdisjoint(kind)), None)
    if kind is None:
        return None
    own = {key: _flat(path, name, key, parts[key]) for key in kind if key in parts}
    extra = sorted(parts.keys() - own.keys() - {"alpha", "magnitude", "dora_scale"})
    if extra:
        raise _damaged(path, f"{name} has {min(own)} and {extra[0]}, which are parts of two networks")
    if kind is LOKR_PARTS:
        first, second = (_factor(path, name, own, f"lokr_w{n}", own.get(f"lokr_t{n}")) for n in (1, 2))
        layer: Update = LokrLayer(first, second)
        ranks = {factor[0].shape[1] for factor in (first, second) if len(factor) == 2}
        if len(ranks) > 1 and "alpha" in parts:
            raise _damaged(path, f"w1 and w2 of {name} have the ranks {min(ranks)} and {max(ranks)}, and one alpha")
        if dimension_of_whole and len(second) == 1:
            return layer.with_values(scale=_alpha(parts, max(second[0].shape)), magnitude=None)
    else:
        first, second = (_factor(path, name, own, f"hada_w{n}", own.get(f"hada_t{n}")) for n in (1, 2))
        if len(first) == 1 or len(second) == 1 or _shape(first) != _shape(second) or first[0].shape != second[0].shape:
            raise _damaged(path, f"the matrices of {name} do not fit each other")
        layer = LohaLayer(first, second)
    return layer if layer.rank is None else layer.with_values(scale=_alpha(parts, layer.rank), magnitude=None)


def _alpha(parts: Mapping[str, Tensor], rank: int) -> float:
    return float(parts["alpha"]) / rank if "alpha" in parts else 1.0


def _flat(path: object, name: str, key: str, tensor: Tensor) -> Tensor:
    """Return `tensor` as a matrix: of a kernel, only the size 1 is a linear layer."""
    if tensor.ndim < 2 or any(size != 1 for size in tensor.shape[2:]):
        raise DsctlError(
            f"{path}: {key} of {name} has the shape {tuple(tensor.shape)}, which is not that of a linear layer",
            hint="only adapters on linear layers can be read",
        )
    return tensor.flatten(1)


def _factor(path: object, name: str, own: Mapping[str, Tensor], key: str, middle: Tensor | None) -> Factor:
    whole, a, b = own.get(key), own.get(f"{key}_a"), own.get(f"{key}_b")
    if (whole is None) == (a is None and b is None) or (a is None) != (b is None):
        raise _damaged(path, f"{name} needs {key}, or {key}_a and {key}_b, and has {', '.join(own)}")
    if middle is not None:
        if a is None or b is None or middle.shape != (a.shape[0], b.shape[0]):
            raise _damaged(path, f"the matrices of {name} do not fit each other")
        a = a.T @ middle
    if whole is not None:
        return (whole,)
    assert a is not None and b is not None
    if a.shape[1] != b.shape[0]:
        raise _damaged(path, f"{key}_a and {key}_b of {name} do not fit each other: {tuple(a.shape)}, {tuple(b.shape)}")
    return a, b


def _as_pair(factor: Factor) -> Factor:
    """Return the factor as a product of two, the inner side of which is its own rank."""
    import torch

    if len(factor) == 2 and factor[0].shape[1] <= min(_shape(factor)):
        return factor
    whole = _product(factor)
    one = torch.eye(min(whole.shape), dtype=whole.dtype, device=whole.device)
    return (one, whole) if whole.shape[0] < whole.shape[1] else (whole, one)


def _product(factor: Factor) -> Tensor:
    return factor[0] if len(factor) == 1 else factor[0] @ factor[1]


def _shape(factor: Factor) -> tuple[int, int]:
    return factor[0].shape[0], factor[-1].shape[1]


def _named(key: str, factor: Factor) -> dict[str, Tensor]:
    return {key: factor[0]} if len(factor) == 1 else {f"{key}_a": factor[0], f"{key}_b": factor[1]}


def _damaged(path: object, problem: str) -> DsctlError:
    return DsctlError(f"{path}: {problem}", hint="download or copy it again")
