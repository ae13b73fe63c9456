"""Run programs on fake CUDA tensors and count: kernels, bytes that they move, memory, and waits of the host.

Small tensors have values beside them, computed on the CPU, so that a program can ask for them. What comes out of a
network is not known: its floats count as 1.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from dsctl_core.memory.recompute import recomputed_inside
from tests.fake_gpu.kernels import kernels_of_a_gpu

aten = torch.ops.aten
MATRIX = {aten._scaled_mm, aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.convolution, aten.convolution_backward}
MATRIX |= {aten._scaled_dot_product_flash_attention, aten._scaled_dot_product_flash_attention_backward}
MATRIX |= {aten._scaled_dot_product_efficient_attention, aten._scaled_dot_product_efficient_attention_backward}
FREE = {aten.detach, aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
FREE |= {aten.alias, aten._local_scalar_dense, aten.lift_fresh, aten.is_same_size, aten._unsafe_view, aten.set_}
FREE |= {torch.ops.prim.device, torch.ops.prim.layout}
SHAPED_BY_VALUES = {aten.nonzero, aten.masked_select, aten.repeat_interleave, aten.unique_consecutive, aten._unique2}
WAITS = {aten._local_scalar_dense, *SHAPED_BY_VALUES}
SMALL = 1 << 16  # numbers of a tensor whose values are kept


class FakeCuda(FakeTensorMode):
    """Fake tensors that never touch a device, also where torch believes that it has one."""

    avoid_device_init = True  # type: ignore[assignment]


@dataclass
class Counts:
    """What ran since `start`: kernels, bytes beside matrix products, waits of the host by their operation.

    `fetched` are bytes that were copied from main memory, of which the host waits for those that are `awaited`: a copy
    is begun and left alone only from pinned memory. `allocated` are the bytes of new tensors, by dtype.
    """

    kernels: int = 0
    bytes: int = 0
    fetched: int = 0
    awaited: int = 0
    allocated: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)


PINNED = "pinned_here"  # attribute of a tensor that a program has pinned


def pin_memory(tensor: Tensor, *_: Any) -> Tensor:
    """Stand for `Tensor.pin_memory`, which would take memory of the device's driver."""
    setattr(tensor, PINNED, True)
    return tensor


def is_pinned(tensor: Tensor) -> bool:
    """Return whether a program has pinned `tensor`."""
    return getattr(tensor, PINNED, False)


class Attention(TorchFunctionMode):
    """Attention by the kernels that a GPU has: flash without a mask, memory-efficient with one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention and (args[0] if args else kwargs["query"]).is_cuda:
            return attend(*args, **kwargs)
        if func is torch.tensor and isinstance(args[0], list):  # reads each number from its device by itself
            args = (tree_map(lambda each: each.item() if isinstance(each, FakeTensor) else each, args[0]), *args[1:])
        return func(*args, **kwargs)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return attention as the kernels of a GPU compute it, (B, heads, T, channels)."""
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = (each.to(dtype) for each in (query, key, value))
    if enable_gqa:
        repeats = query.shape[1] // key.shape[1]
        key, value = (each.repeat_interleave(repeats, 1, output_size=query.shape[1]) for each in (key, value))
    wide = query.shape[-1] > 256 or query.dtype == torch.float32
    if attn_mask is None and not wide:
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = query.new_zeros(attn_mask.shape).masked_fill(attn_mask.logical_not(), float("-inf"))
        attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    needed = any(each.requires_grad for each in (query, key, value))
    arguments = (query, key, value, attn_mask, needed, dropout_p, is_causal)
    return aten._scaled_dot_product_efficient_attention(*arguments, scale=scale)[0]


def apply_by_replacing(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Do what `nn.Module._apply` does with new parameters: a fake tensor cannot be the data of another tensor."""
    known: dict[int, Any] = vars(function).setdefault("made", {})  # a weight that two modules share stays one
    for child in module.children() if recurse else ():
        child._apply(function)
    for holder in (module._parameters, module._buffers):
        for name, tensor in holder.items():
            if tensor is None:
                continue
            before, made = known.get(id(tensor), (lambda: None, None))
            if before() is not tensor:
                made = function(tensor)
                if made is not tensor and isinstance(tensor, nn.Parameter):
                    made = nn.Parameter(made.detach(), tensor.requires_grad)
                known[id(tensor)] = (weakref.ref(tensor), made)
            holder[name] = made
    return module


class Gpu(TorchDispatchMode):
    """Counts what runs on the fake device. `now` and `peak` are bytes of CUDA tensors that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.mode = FakeCuda(allow_non_fake_inputs=True)
        self.counts = Counts()
        self.now = self.peak = 0
        self._seen: dict[int, Any] = {}
        self._values: dict[int, tuple[Any, Tensor]] = {}

    def start(self) -> None:
        """Begin to count anew; what is alive stays counted."""
        self.counts, self.peak = Counts(), self.now

    @contextmanager
    def running(self) -> Iterator[Gpu]:
        """Run what is inside on the fake device."""

        def as_list(tensor: FakeTensor) -> Any:
            host = tensor.cpu() if tensor.is_cuda else tensor
            return host.item() if host.dim() == 0 else [as_list(each) for each in host]

        def as_numpy(tensor: FakeTensor) -> Any:
            return torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu").numpy()

        before, lifted = (FakeTensor.tolist, FakeTensor.numpy), torch._C._only_lift_cpu_tensors()
        FakeTensor.tolist, FakeTensor.numpy = as_list, as_numpy  # type: ignore[method-assign,assignment]
        applied = nn.Module._apply
        nn.Module._apply = apply_by_replacing  # type: ignore[method-assign,assignment]
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") makes it on the CPU first
        try:
            with Attention(), recomputed_inside(Attention), kernels_of_a_gpu(), self:
                yield self
        finally:
            FakeTensor.tolist, FakeTensor.numpy = before  # type: ignore[method-assign]
            nn.Module._apply = applied  # type: ignore[method-assign]
            torch._C._set_only_lift_cpu_tensors(lifted)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        device = kwargs.get("device")
        to_gpu = device is not None and torch.device(device).type == "cuda"
        pinned = kwargs.pop("pin_memory", False)
        if not pinned and not to_gpu and not any(isinstance(each, FakeTensor) for each in inputs):
            return func(*args, **kwargs)
        packet, on_gpu = func.overloadpacket, to_gpu or any(each.is_cuda for each in inputs)
        if on_gpu and self._waits(packet, args, kwargs):
            self.counts.waits[str(packet)] += 1
        if packet is aten._local_scalar_dense:
            return self._number(args[0])
        if on_gpu and packet in (aten._to_copy, aten.copy_):
            source = args[0] if packet is aten._to_copy else args[1]
            left_alone = kwargs.get("non_blocking") or packet is aten.copy_ and len(args) > 2 and args[2]
            self.counts.fetched += 0 if source.is_cuda else source.nbytes
            if not source.is_cuda and not (left_alone and is_pinned(source)):
                self.counts.awaited += source.nbytes
        values = self._computed(func, args, kwargs, inputs)
        if packet in (aten.index, aten.index_put_, aten.index_put):
            args = (args[0], self._places(args[1]), *args[2:])
        known = {self._key(each) for each in inputs}
        with self.mode:
            if packet in SHAPED_BY_VALUES and values is not None:
                result: Any = tree_map(lambda each: args[0].new_empty(each.shape, dtype=each.dtype), values)
            else:
                result = func(*args, **kwargs)
        made = [each for each in tree_flatten(result)[0] if isinstance(each, Tensor)]
        for tensor in made if pinned else ():
            setattr(tensor, PINNED, True)
        if on_gpu:
            self._count(packet, inputs, made, known)
        for tensor in made:
            if tensor.is_cuda and self._key(tensor) not in known:
                self._alive(tensor)
        self._keep(made, values, func)
        return result

    @staticmethod
    def _waits(packet: Any, args: Any, kwargs: Any) -> bool:
        if packet in (aten._to_copy, aten.copy_):
            target = kwargs.get("device") if packet is aten._to_copy else args[0].device
            source = args[0] if packet is aten._to_copy else args[1]
            waits = not kwargs.get("non_blocking", len(args) > 2 and args[2])
            return waits and bool(target) and torch.device(target).type == "cpu" and source.is_cuda
        if packet is aten.repeat_interleave:
            return kwargs.get("output_size") is None
        if packet in (aten.index, aten.index_put_):
            return any(isinstance(each, Tensor) and each.dtype == torch.bool for each in args[1])
        return packet in WAITS

    def _number(self, tensor: Tensor) -> Any:
        value = self._values.get(id(tensor))
        if value is not None and value[0]() is tensor:
            return value[1].item()
        if tensor.dtype.is_floating_point:
            return 1.0
        if tensor.dtype == torch.bool:
            return True
        raise AssertionError(f"a whole number that comes out of a network is asked for: {tensor}")

    def _value(self, tensor: Tensor) -> Tensor | None:
        if not isinstance(tensor, FakeTensor):
            return tensor if tensor.numel() <= SMALL else None
        found = self._values.get(id(tensor))
        if found is not None and found[0]() is tensor:
            return found[1]
        small = tensor.numel() <= 64 and tensor.dtype.is_floating_point
        return torch.ones(tensor.shape, dtype=tensor.dtype) if small else None

    def _places(self, indices: Any) -> list[Any]:
        """Return `indices` with the places of what is true for masks, of which only values tell the shape."""
        found: list[Any] = []
        for each in indices:
            value = self._value(each) if isinstance(each, Tensor) and each.dtype == torch.bool else None
            found += [each] if value is None else list(value.nonzero().unbind(-1))
        return found

    def _computed(self, func: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> Any:
        """Return what `func` gives on the values of its arguments, None where they are not all known."""
        if any(each.numel() > SMALL for each in inputs) or not inputs and func.overloadpacket in FREE:
            return None
        values = {id(each): self._value(each) for each in inputs}
        if any(value is None for value in values.values()):
            return None
        plain = tree_map(lambda each: values[id(each)] if isinstance(each, Tensor) else each, (args, kwargs))
        if plain[1].get("device") is not None:
            plain[1]["device"] = torch.device("cpu")
        try:
            with torch.no_grad():
                return func(*plain[0], **plain[1])
        except (RuntimeError, NotImplementedError, IndexError):
            return None

    def _keep(self, made: list[Tensor], values: Any, func: Any) -> None:
        known = [each for each in tree_flatten(values)[0] if isinstance(each, Tensor)] if values is not None else []
        if len(known) != len(made):
            known = []
        for number, tensor in enumerate(made):
            if not known or known[number].shape != tensor.shape or known[number].numel() > SMALL:
                if func._schema.is_mutable:
                    self._values.pop(id(tensor), None)
                continue
            key = id(tensor)
            self._values[key] = (weakref.ref(tensor, lambda _, key=key: self._values.pop(key, None)), known[number])

    def _count(self, packet: Any, inputs: list[Tensor], made: list[Tensor], known: set[int]) -> None:
        views = bool(made) and all(self._key(each) in known for each in made)
        if packet in FREE or (
            views and not packet.__name__.endswith("_") and not packet.__name__.startswith("_foreach")
        ):
            return
        self.counts.kernels += 1
        self.counts.names[packet.__name__] += 1
        if packet not in MATRIX:
            self.counts.bytes += sum(each.numel() * each.element_size() for each in (*inputs, *made) if each.is_cuda)

    @staticmethod
    def _key(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata

    def holds(self, tensor: Tensor) -> None:
        """Count a tensor that was made without counting."""
        self._alive(tensor)

    def _alive(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def gone(_: Any) -> None:
            del self._seen[key]
            self.now -= size

        self._seen[key] = weakref.ref(storage, gone)
        self.counts.allocated[str(tensor.dtype).removeprefix("torch.")] += size
        self.now += size
        self.peak = max(self.peak, self.now)
