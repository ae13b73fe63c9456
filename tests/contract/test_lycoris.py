"""The library LyCORIS itself reads what is trained here, and what it makes is read here: the same weights both ways."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dsctl_core.families import load_family
from dsctl_core.lora import save_lora
from dsctl_core.lora.adapters import NetworkSettings
from dsctl_core.lora.layers import add_network, linear_shapes, trained_layers
from tests.contract import loras
from tests.tiny_models import BUILDERS, write_tiny_model

# What `--network` and its options make, by the kind of module that LyCORIS has for it.
TRAINED = {
    "lora": ("LoConModule", NetworkSettings(rank=2, alpha=3)),
    "rslora": ("LoConModule", NetworkSettings(rank=2, use_rslora=True)),
    "dora": ("LoConModule", NetworkSettings(rank=2, use_dora=True)),
    "lokr": ("LokrModule", NetworkSettings("lokr", rank=2, alpha=1)),
    "lokr-factor": ("LokrModule", NetworkSettings("lokr", rank=1, factor=2, alpha=3)),
    "lokr-both": ("LokrModule", NetworkSettings("lokr", rank=1, decompose_both=True)),
    "lokr-full": ("LokrModule", NetworkSettings("lokr", full_matrix=True)),
    "loha": ("LohaModule", NetworkSettings("loha", rank=2, alpha=3)),
}
MADE = ["lora", "lokr", "loha"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_tiny_model(name, root / name) for name in BUILDERS}


@pytest.fixture(autouse=True)
def _as_without_lycoris() -> Iterator[None]:
    """Undo what it does to the loggers of the process."""
    logger = logging.getLogger("LyCORIS")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


def transformer(folder: Path) -> Any:
    import diffusers

    config = json.loads((folder / loras.DIT / "config.json").read_text(encoding="utf-8"))
    return getattr(diffusers, config["_class_name"]).from_pretrained(folder / loras.DIT)


def weights_with(network: Any, model: Any) -> dict[str, Tensor]:
    """All weights of `model`, as its layers compute with `network`; its own merging scales some kinds twice."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network.apply_to()
    names = {id(module): name for name, module in model.named_modules()}
    with torch.no_grad():
        for each in network.loras:
            layer = each.org_module[0]
            rows = layer(torch.eye(layer.in_features)) - layer(torch.zeros(1, layer.in_features))
            weights[f"{names[id(layer)]}.weight"] = rows.T
    network.restore()
    return weights


def random_numbers(seed: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda tensor: torch.randn(tensor.shape, generator=generator) * 0.2


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_lycoris_computes_with_what_is_trained_as_dsctl_does(
    folders: dict[str, Path], tmp_path: Path, name: str, kind: str
) -> None:
    from lycoris import create_lycoris_from_weights

    module, settings = TRAINED[kind]
    family, dit, drawn = load_family(name), loras.fresh(name, folders[name]).dit, random_numbers(8)
    shapes = linear_shapes(dit)
    added = add_network(dit, family.lora_targets, settings)
    with torch.no_grad():
        for parameter in dit.parameters():
            if parameter.requires_grad:
                parameter.add_(drawn(parameter))
    path = tmp_path / "l.safetensors"
    layers = {"dit": trained_layers(dit)}
    save_lora(path, layers, {}, form="lycoris", shapes={"dit": shapes}, original=family.original_names)
    theirs = transformer(folders[name])
    network, _ = create_lycoris_from_weights(1.0, str(path), theirs)
    assert {type(each).__name__ for each in network.loras} == {module}
    assert len(network.loras) == len(added)
    expected = weights_with(network.eval(), theirs)
    changed = [key for key, value in theirs.state_dict().items() if not torch.allclose(value, expected[key], atol=1e-2)]
    assert len(changed) == len(added)
    loras.assert_same(loras.fused_weights(name, folders[name], path), expected)


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_what_lycoris_makes_gives_the_same_weights_here(
    folders: dict[str, Path], tmp_path: Path, name: str, kind: str
) -> None:
    from lycoris import LycorisNetwork, create_lycoris

    theirs, drawn = transformer(folders[name]), random_numbers(9)
    attention = {type(each).__name__ for each in theirs.modules() if "Attention" in type(each).__name__}
    LycorisNetwork.apply_preset({"target_module": sorted(attention)})
    network = create_lycoris(theirs, 1.0, linear_dim=2, linear_alpha=1.0, algo={"lora": "locon"}.get(kind, kind))
    assert len(network.loras) > 3
    with torch.no_grad():
        for each in network.loras:
            for parameter in each.parameters():
                parameter.copy_(drawn(parameter))
    expected = weights_with(network.eval(), theirs)
    path = tmp_path / "l.safetensors"
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    loras.assert_same(loras.fused_weights(name, folders[name], path), expected)
