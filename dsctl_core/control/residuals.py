"""Implement control by residuals: keyword inputs that the denoiser adds after its blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dsctl_core.control.use import ControlUse, arguments_of, reads_of, use_now
from dsctl_core.errors import DsctlError
from dsctl_core.side_network import STEERED_BY
from dsctl_core.units import Inputs

WITHOUT = ("network", "denoiser")


@dataclass(frozen=True)
class ResidualControl:
    """A control network with outputs that are inputs of `model_fn`, such as `controlnet_block_samples`.

    `residuals(network, denoiser, control, ...)` returns them by name: tensors, or lists, tuples or dicts of tensors.
    `control` are the latents of the control image; further parameters are inputs of `model_fn` by name. With a
    parameter `scale`, `residuals` returns them scaled; otherwise they are scaled here. The residuals of several
    networks are added up. `use` is in force where the inputs have none for this network. With `own_prompt`
    the pass of the negative prompt has residuals of its own, else it has those of the prompt.
    """

    name: str
    residuals: Callable[..., Mapping[str, Any]]
    use: ControlUse = ControlUse()
    own_prompt: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """The inputs of `model_fn` that the control reads."""
        return reads_of(self.residuals, self.name, WITHOUT)

    @contextmanager
    def __call__(self, network: nn.Module, denoiser: nn.Module, inputs: Inputs) -> Iterator[Inputs]:
        """Yield `inputs` with the residuals of the network added."""
        use = use_now(self.name, inputs, self.use)
        if use is None:
            yield inputs
            return
        read = {**inputs, STEERED_BY: None} if self.own_prompt else inputs
        arguments = arguments_of(self.residuals, self.name, read, use, WITHOUT)
        made = self.residuals(network, denoiser, **arguments)
        left = 1.0 if "scale" in arguments else use.scale
        yield {**inputs, **{key: _sum(key, inputs.get(key), _scaled(each, left)) for key, each in made.items()}}


def _scaled(value: Any, scale: float) -> Any:
    if isinstance(value, Tensor):
        return value if scale == 1 else value * scale
    if isinstance(value, Mapping):
        return {key: _scaled(each, scale) for key, each in value.items()}
    return type(value)(_scaled(each, scale) for each in value)


def _sum(name: str, before: Any, value: Any) -> Any:
    """Return the sum of two values of the same structure; `before` may be None, which counts as zero.

    Raises DsctlError for lists of different lengths; `name` is the name of the input in the message.
    """
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
