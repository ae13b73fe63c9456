"""LoRAs on tiny models of every family, and what they make of the weights of the transformer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.families import load_family, pipeline_class
from dsctl_core.lora import LohaLayer, LokrLayer, LoraLayer, fuse_lora
from dsctl_core.lora.targets import find_targets, linear_layers

DIT = "transformer"


def fresh(name: str, folder: Path) -> Any:
    """Load the denoiser of the family `name` from the tiny model in `folder`."""
    return pipeline_class(load_family(name)).from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(path=folder)], only=["dit"]
    )


def made_layers(name: str, dit: Any, also: Iterable[str] = ()) -> dict[str, LoraLayer]:
    """A LoRA on the default layers of the family and on `also`, of two ranks, with scales that are not one."""
    generator = torch.Generator().manual_seed(5)
    linear = linear_layers(dit)
    made = {}
    for number, layer in enumerate([*find_targets(dit, load_family(name).lora_targets), *also]):
        rows, columns = linear[layer].out_features, linear[layer].in_features
        rank = 2 + number % 2
        down, up = (torch.randn(size, generator=generator) * 0.2 for size in ((rank, columns), (rows, rank)))
        made[layer] = LoraLayer(down, up, 0.5 if number % 3 else 1.3)
    assert len(made) >= 6
    return made


def updated_weights(dit: Any, layers: Mapping[str, LoraLayer]) -> dict[str, Tensor]:
    """All weights of `dit` with the updates of `layers` added: computed here, without the code under test."""
    weights = {name: tensor.detach().clone() for name, tensor in dit.state_dict().items()}
    for name, layer in layers.items():
        weights[f"{name}.weight"] += layer.scale * _product(layer)
    return weights


def _product(layer: Any) -> Tensor:
    if isinstance(layer, LoraLayer):
        return layer.up @ layer.down
    first, second = (f[0] if len(f) == 1 else f[0] @ f[1] for f in (layer.first, layer.second))
    return torch.kron(first, second) if isinstance(layer, LokrLayer) else first * second


def made_products(name: str, dit: Any) -> dict[str, dict[str, LokrLayer | LohaLayer]]:
    """A LoKr and a LoHa on the default layers of the family, by network, of several ranks and scales."""
    generator = torch.Generator().manual_seed(6)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.4

    made: dict[str, dict[str, LokrLayer | LohaLayer]] = {"lokr": {}, "loha": {}}
    linear = linear_layers(dit)
    for number, layer in enumerate(find_targets(dit, load_family(name).lora_targets)):
        rows, columns, rank = linear[layer].out_features, linear[layer].in_features, 2 + number % 2
        low = [(rand(rows, rank), rand(rank, columns)) for _ in "ab"]
        made["loha"][layer] = LohaLayer(low[0], low[1], 0.5 if number % 3 else 1.3)
        a, b = 2 - rows % 2, 2 - columns % 2
        second = rows // a, columns // b
        first = (rand(a, b),) if number % 3 else (rand(a, 1), rand(1, b))
        products = {1: (rand(*second),), 2: (rand(second[0], 1), rand(1, second[1]))}
        made["lokr"][layer] = LokrLayer(first, products[1 + number % 2], 0.7 if number % 3 == 0 or number % 2 else 1.0)
    return made


def fused_weights(name: str, folder: Path, lora: Path) -> dict[str, Tensor]:
    """All weights of the denoiser with the LoRA file `lora` fused into them by dsctl."""
    pipe = fresh(name, folder)
    fuse_lora(pipe, lora, None)
    return dict(pipe.dit.state_dict())


def diffusers_class(folder: Path) -> Any:
    """The pipeline class of diffusers that the model in `folder` is made for."""
    import diffusers

    return getattr(diffusers, json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"])


def fused_by_diffusers(folder: Path, lora: Path) -> dict[str, Tensor]:
    """All weights of the transformer with the LoRA file fused into them by diffusers alone."""
    import diffusers

    config = json.loads((folder / DIT / "config.json").read_text(encoding="utf-8"))
    transformer = getattr(diffusers, config["_class_name"]).from_pretrained(folder / DIT)
    cls = diffusers_class(folder)
    alphas = (
        {"network_alphas": None} if "network_alphas" in signature(cls.load_lora_into_transformer).parameters else {}
    )
    state, metadata = cls.lora_state_dict(str(lora.parent), weight_name=lora.name, return_lora_metadata=True)
    cls.load_lora_into_transformer(state, transformer=transformer, metadata=metadata, **alphas)
    transformer.fuse_lora()
    transformer.unload_lora()
    return dict(transformer.state_dict())


def assert_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, atol=2e-6, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
