"""Implement control by hooks: a network changes the outputs of modules of the denoiser during one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from dsctl_core.control.use import ControlUse, arguments_of, reads_of, use_now
from dsctl_core.errors import unknown_name
from dsctl_core.memory.recompute import recomputed_inside
from dsctl_core.units import Inputs

Hook = Callable[[nn.Module, tuple[Any, ...], Any], Any]  # (module, its inputs, its output) -> another output
WITHOUT = ("network", "denoiser", "scale")


@dataclass(frozen=True)
class HookControl:
    """A control network that changes the outputs of modules of the denoiser during one call of `model_fn`.

    `hooks(network, denoiser, scale, control, ...)` returns forward hooks by module name. `control` are the latents of
    the control image; further parameters are inputs of `model_fn` by name. A hook must not modify the output in place.
    Hooks are removed after the call, and installed again when gradient checkpointing recomputes a block. `use` is in
    force where the inputs have none for this network.
    """

    name: str
    hooks: Callable[..., Mapping[str, Hook]]
    use: ControlUse = ControlUse()

    @property
    def reads(self) -> tuple[str, ...]:
        """The inputs of `model_fn` that the control reads."""
        return reads_of(self.hooks, self.name, WITHOUT)

    @contextmanager
    def __call__(self, network: nn.Module, denoiser: nn.Module, inputs: Inputs) -> Iterator[Inputs]:
        """Install the hooks inside the block, and yield `inputs` unchanged."""
        use = use_now(self.name, inputs, self.use)
        if use is None:
            yield inputs
            return
        arguments = arguments_of(self.hooks, self.name, inputs, use, WITHOUT)
        hooks = self.hooks(network, denoiser, use.scale, **arguments)
        modules = dict(denoiser.named_modules())
        for name in hooks:
            if name not in modules:
                raise unknown_name("module of the denoiser", name, list(modules)[1:], listing="see the model's layers")

        @contextmanager
        def installed() -> Iterator[None]:
            with ExitStack() as stack:
                for name, hook in hooks.items():
                    stack.callback(modules[name].register_forward_hook(hook).remove)
                yield

        with recomputed_inside(installed), installed():
            yield inputs
