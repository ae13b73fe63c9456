"""Control by residuals: keyword inputs that the denoiser takes and adds after its blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dsctl_core.control.use import arguments_of, reads_of, use_now
from dsctl_core.errors import DsctlError
from dsctl_core.units import Inputs

WITHOUT = ("network",)


@dataclass(frozen=True)
class ResidualControl:
    """A network `name` whose outputs are inputs of `model_fn`, such as `controlnet_block_samples`.

    `residuals(network, control, ...)` returns them by name: tensors, or lists, tuples or dicts of tensors. Beside the
    latents `control` it takes what it names of the inputs of the call. Of several networks they are added up.
    """

    name: str
    residuals: Callable[..., Mapping[str, Any]]

    @property
    def reads(self) -> tuple[str, ...]:
        """The inputs that it looks at."""
        return reads_of(self.residuals, self.name, WITHOUT)

    @contextmanager
    def __call__(self, network: nn.Module, denoiser: nn.Module, inputs: Inputs) -> Iterator[Inputs]:
        """Yield `inputs` with what the network adds to them."""
        use = use_now(self.name, inputs)
        if use is None:
            yield inputs
            return
        made = self.residuals(network, **arguments_of(self.residuals, self.name, inputs, WITHOUT))
        yield {**inputs, **{key: _sum(key, inputs.get(key), _scaled(each, use.scale)) for key, each in made.items()}}


def _scaled(value: Any, scale: float) -> Any:
    if isinstance(value, Tensor):
        return value if scale == 1 else value * scale
    if isinstance(value, Mapping):
        return {key: _scaled(each, scale) for key, each in value.items()}
    return type(value)(_scaled(each, scale) for each in value)


def _sum(name: str, before: Any, value: Any) -> Any:
    """Return the sum of two values of one form; None before counts as nothing."""
    if before is None:
        return value
    if isinstance(value, Tensor):
        return before + value
    if isinstance(value, Mapping):
        return {key: _sum(name, before.get(key), value.get(key)) for key in {**before, **value}}
    if len(before) != len(value):
        raise DsctlError(
            f"two control networks make {len(before)} and {len(value)} {name}, which cannot be added up",
            hint="use one of them, or two of one size",
        )
    return type(value)(_sum(name, one, other) for one, other in zip(before, value, strict=True))
