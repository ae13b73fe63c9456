"""Run a model on fake tensors, which have shapes and dtypes but no storage, and count their bytes."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from dsctl_core.memory.dtypes import dtype_of, float32_parts


class Simulation:
    """A mode of fake tensors. The result of an operation on any of them is a fake tensor too."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    @contextmanager
    def building(self) -> Iterator[None]:
        """Create every tensor inside the context as a fake tensor."""
        with self.mode, torch.no_grad():
            yield

    def take(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        """Replace the parameters and buffers of `model` by fake tensors, and return `model`.

        Floating-point tensors get `dtype`, if not None, except for the parts that stay in float32. A fake
        tensor that has the right dtype already stays.
        """
        shared: dict[int, Tensor] = {}
        parts = float32_parts(model, dtype=dtype)
        for prefix, module in model.named_modules():
            for holder in (module._parameters, module._buffers):
                for name, tensor in list(holder.items()):
                    if tensor is not None:
                        wanted = None if dtype is None else dtype_of(f"{prefix}.{name}", tensor, dtype, parts)
                        holder[name] = shared.setdefault(id(tensor), self._taken(tensor, wanted))
        return model

    def _taken(self, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        if isinstance(tensor, FakeTensor) and tensor.fake_mode is self.mode and dtype in (None, tensor.dtype):
            return tensor
        with self.mode:
            fake = torch.empty(tensor.shape, dtype=dtype or tensor.dtype, device=tensor.device)
        if not isinstance(tensor, nn.Parameter):
            return fake
        return nn.Parameter(fake, requires_grad=tensor.requires_grad)


@contextmanager
def quiet_conversion() -> Iterator[None]:
    """Silence the warning of torch when it converts a real tensor with a history, by reading its `.grad`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        yield


@contextmanager
def replaced_when_converted() -> Iterator[None]:
    """Let `module.to(dtype=...)` replace the fake tensors of a module, as it does with real ones.

    Of fake ones torch swaps the contents, which fails for tensors that something holds a weak reference to, as the mode
    of fake tensors does. Weights that are stored in 8 bits are converted so, also before and after each call.
    """
    plain = nn.Module._apply

    def apply(module: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
        own = [*module._parameters.values(), *module._buffers.values()]
        if not any(isinstance(tensor, FakeTensor) for tensor in own):
            return plain(module, fn, recurse)
        for child in module.children() if recurse else ():
            child._apply(fn)
        with torch.no_grad():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(fn(parameter), parameter.requires_grad)
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else fn(buffer)
        return module

    nn.Module._apply = apply  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = plain  # type: ignore[method-assign]


class KnownAnswers(TorchFunctionMode):
    """Answers questions about the values of fake tensors.

    They count as finite. A mask with real values indexes a fake tensor by the positions of its true entries.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and isinstance(args[0], FakeTensor):
            mask = args[1]
            if isinstance(mask, Tensor) and mask.dtype == torch.bool and not isinstance(mask, FakeTensor):
                args = (args[0], mask.nonzero().unbind(-1))
        if func is torch.isfinite and isinstance(args[0], FakeTensor):
            return torch.ones((), dtype=torch.bool)
        return func(*args, **(kwargs or {}))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations create, as long as each lives.

    `now` and `peak` count all tensors created since the counting began; a view shares the bytes of its base.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {self._key(each) for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, Tensor) and self._key(tensor) not in known:
                self._count(tensor)
        return result

    @staticmethod
    def _key(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def gone(_: Any) -> None:
            del self._seen[key]
            self.now -= size

        self._seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)

    def counted(self, tensors: Iterable[Tensor]) -> int:
        """Return the bytes of those of `tensors` that are among the counted ones."""
        return tensor_bytes(each for each in tensors if self._key(each) in self._seen)

    def start_peak(self) -> None:
        """Reset the peak to the bytes in use now."""
        self.peak = self.now


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of `tensors`, each counted once."""
    return sum({id(each): each.numel() * each.element_size() for each in tensors}.values())
