"""Apply a LoRA during one call of a model, without changing its weights and with gradients for the LoRA."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from dsctl_core.errors import DsctlError
from dsctl_core.lora.layer import LoraLayer, Update
from dsctl_core.lora.targets import linear_layers
from dsctl_core.memory.recompute import recomputed_inside

# {component: {layer: the updates to add up, as one list per sample of a batch, or as one list for all samples}}
AppliedLora = Mapping[str, Mapping[str, Sequence[Sequence[Update]]]]


@contextmanager
def lora_applied(models: Mapping[str, nn.Module], lora: AppliedLora) -> Iterator[None]:
    """Add `lora` to the outputs of linear layers of `models` in the block, also when gradient checkpointing recomputes.

    The output of a layer becomes W x + sum of scale * up (down x), or of scale * matrix x, with each update computed
    in its own dtype.
    """

    @contextmanager
    def hooked() -> Iterator[None]:
        with ExitStack() as hooks:
            for component, layers in lora.items():
                modules = linear_layers(models[component])
                for name, samples in layers.items():
                    hooks.callback(modules[name].register_forward_hook(_adding(samples)).remove)
            yield

    with recomputed_inside(hooked), hooked():
        yield


def _adding(samples: Sequence[Sequence[Update]]) -> Callable[..., Tensor]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        (given,) = inputs
        if len(samples) == 1:
            return output + _update(given, samples[0]).to(output.dtype)
        if len(given) != len(samples):
            raise DsctlError(
                f"a batch of {len(given)} has LoRAs for {len(samples)} samples",
                hint="give a batch size of 1",
            )
        rows = [_update(given[number : number + 1], own) for number, own in enumerate(samples)]
        return output + torch.cat(rows).to(output.dtype)

    return hook


def _update(given: Tensor, layers: Sequence[Update]) -> Tensor:
    parts = []
    for layer in layers:
        if not isinstance(layer, LoraLayer):
            matrix = layer.mapped(lambda tensor: tensor.to(given.device)).matrix()
            parts.append(linear(given.to(matrix.dtype), matrix) * layer.scale)
            continue
        down, up = layer.down.to(given.device), layer.up.to(given.device)
        parts.append(linear(linear(given.to(down.dtype), down), up) * layer.scale)
    return torch.stack(parts).sum(dim=0) if len(parts) > 1 else parts[0]
