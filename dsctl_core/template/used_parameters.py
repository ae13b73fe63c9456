"""CallbackPlan which parameters a piece of code computes with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


class _Watching(TorchFunctionMode):
    """Notes each watched tensor that goes into a function of torch; looking at its dtype or device is none."""

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
    """Give a set that comes to hold the names of those `parameters` that are computed with in here."""
    if not parameters:
        yield set()
        return
    with _Watching({id(parameter): name for name, parameter in parameters.items()}) as watching:
        yield watching.used
