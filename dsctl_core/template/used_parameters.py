"""Record which parameters a block of code computes with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


class _RecordUsed(TorchFunctionMode):
    """Records the watched tensors that are arguments of torch functions; reading an attribute does not count."""

    def __init__(self, watched: Mapping[int, str]) -> None:
        super().__init__()
        self.watched, self.used = watched, set[str]()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") != "__get__":
            for each in tree_leaves((args, kwargs)):
                if isinstance(each, Tensor) and id(each) in self.watched:
                    self.used.add(self.watched[id(each)])
        return func(*args, **(kwargs or {}))


@contextmanager
def parameters_used(parameters: Mapping[str, Tensor]) -> Iterator[set[str]]:
    """Yield a set that collects the names of the `parameters` that this block computes with."""
    if not parameters:
        yield set()
        return
    with _RecordUsed({id(parameter): name for name, parameter in parameters.items()}) as mode:
        yield mode.used
