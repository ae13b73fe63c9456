"""Control by hooks: what a network does to the outputs of the denoiser's modules while one call lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from dsctl_core.control.use import arguments_of, reads_of, use_now
from dsctl_core.errors import unknown_name
from dsctl_core.memory.recompute import recomputed_inside
from dsctl_core.units import Inputs

Hook = Callable[[nn.Module, tuple[Any, ...], Any], Any]  # (module, its inputs, its output) -> another output
WITHOUT = ("network", "denoiser", "scale")


@dataclass(frozen=True)
class HookControl:
    """A network `name` that changes the outputs of modules of the denoiser, in one call of `model_fn`.

    `hooks(network, denoiser, scale, control, ...)` returns forward hooks by the names of modules; beside the latents
    `control` it takes what it names of the inputs of the call. A hook must not write to the output in place. Hooks are
    there again when a block is computed again for the backward pass, and gone when the call is over.
    """

    name: str
    hooks: Callable[..., Mapping[str, Hook]]

    @property
    def reads(self) -> tuple[str, ...]:
        """The inputs that it looks at."""
        return reads_of(self.hooks, self.name, WITHOUT)

    @contextmanager
    def __call__(self, network: nn.Module, denoiser: nn.Module, inputs: Inputs) -> Iterator[Inputs]:
        """Yield `inputs` as they are, with the hooks in force."""
        use = use_now(self.name, inputs)
        if use is None:
            yield inputs
            return
        arguments = arguments_of(self.hooks, self.name, inputs, WITHOUT)
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
