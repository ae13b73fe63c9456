"""LoRA layers on a model, through peft: put in new ones, load trained ones, fuse them into the weights, take them out.

The update of a linear layer is W + (alpha / R) * B @ A with A (R, in) and B (out, R)
(Hu et al. 2021, arXiv:2106.09685).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dsctl_core.errors import DsctlError, near_miss
from dsctl_core.lora.files import read_lora
from dsctl_core.lora.formats import FORMATS, Layers, LoraFile, LoraLayer, encode, with_dots

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline

TRAINED = "default"  # the name peft gives to the one adapter that is being trained


def add_lora(
    model: nn.Module, target_modules: Sequence[str], rank: int, alpha: float | None = None, seed: int = 0
) -> None:
    """Put a trainable LoRA on every linear layer of `model` whose name ends in one of `target_modules`.

    A starts at random from `seed`, B at zero, so the model's output does not change. Both are float32 whatever the
    dtype of the model, because small updates are lost in 16 bits. `alpha` None means `rank`, a scale of one.
    Every target must match at least one layer; one that matches none is a DsctlError.
    """
    from peft import LoraConfig, inject_adapter_in_model

    # By their whole names: the end of one can also be that of a module that is no layer.
    layers = _matched(model, target_modules)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers, lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=TRAINED)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    for layer in tuner_layers(model).values():
        layer.scaling[TRAINED] = 1.0 if alpha is None else alpha / rank


def _matched(model: nn.Module, target_modules: Sequence[str]) -> list[str]:
    """Return the names of the linear layers that end in one of `target_modules`; each must match one at least."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not target_modules:
        raise DsctlError("no LoRA target modules were given", hint="name layers such as to_q,to_k,to_v")
    found: dict[str, None] = {}
    for target in target_modules:
        matches = [name for name in linear if name == target or name.endswith(f".{target}")]
        found.update(dict.fromkeys(matches))
        if not matches:
            guess = near_miss(target, sorted({tail for name in linear for tail in _tails(name)}))
            raise DsctlError(
                f"LoRA target {target!r} matches no linear layer of the {type(model).__name__}",
                hint=f"did you mean {guess!r}?" if guess else f"layers are named like {', '.join(linear[-3:])}",
            )
    return list(found)


def _tails(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[-n:]) for n in (1, 2, 3) if n <= len(parts)]


def tuner_layers(model: nn.Module, adapter: str = TRAINED) -> dict[str, Any]:
    """Return peft's LoRA layers of `model` that carry `adapter`, by the name of the layer they wrap."""
    from peft.tuners.lora import LoraLayer as PeftLayer

    return {n: m for n, m in model.named_modules() if isinstance(m, PeftLayer) and adapter in m.lora_A}


def trained_layers(model: nn.Module) -> Layers:
    """Return the LoRA that is being trained on `model`, by the name of the layer that each part is on."""
    return {
        name: LoraLayer(layer.lora_A[TRAINED].weight, layer.lora_B[TRAINED].weight, layer.scaling[TRAINED])
        for name, layer in tuner_layers(model).items()
    }


def export_lora(model: nn.Module, component: str) -> dict[str, Tensor]:
    """Return the trained LoRA of `model` as tensors of the default format: float32, alpha folded into lora_B."""
    return encode(trained_layers(model), component, FORMATS["diffusers"])


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of `model` by name, whether or not a LoRA is on them."""
    return {
        name.replace(".base_layer", ""): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the shape (out, in) of every linear layer of `model`, by name."""
    return {name: (layer.out_features, layer.in_features) for name, layer in linear_layers(model).items()}


def continue_lora(model: nn.Module, component: str, path: Path) -> None:
    """Copy the LoRA in `path` into the trainable one on `model`; both must cover the same layers at the same rank."""
    loaded = _layers_for(model, component, read_lora(path, (component,)))
    trained = tuner_layers(model)
    missing, extra = sorted(set(trained) - set(loaded)), sorted(set(loaded) - set(trained))
    if missing or extra:
        which = f"it lacks {missing[0]}" if missing else f"it has {extra[0]}, which is not being trained"
        raise DsctlError(
            f"{path} does not cover the LoRA layers of this run: {which}",
            hint="give the --lora-target-modules that the file was trained with",
        )
    for name, layer in trained.items():
        down = layer.lora_A[TRAINED].weight
        if loaded[name].rank != down.shape[0]:
            raise DsctlError(
                f"{path} has rank {loaded[name].rank}, but this run trains rank {down.shape[0]}",
                hint=f"give --lora-rank {loaded[name].rank}",
            )
        with torch.no_grad():
            down.copy_(loaded[name].down)
            layer.lora_B[TRAINED].weight.copy_(loaded[name].up * (loaded[name].scale / layer.scaling[TRAINED]))


def _layers_for(model: nn.Module, component: str, lora: LoraFile) -> Layers:
    """Return the layers of `lora` that belong to `component`, checked against the shapes of `model`."""
    return layers_for(linear_shapes(model), component, lora)


def layers_for(shapes: dict[str, tuple[int, int]], component: str, lora: LoraFile) -> Layers:
    """Return the layers of `lora` that belong to `component`, which has linear layers of these `shapes`.

    Raises DsctlError for a LoRA of another component, family or width.
    """
    layers = with_dots(lora, component, shapes)
    if not layers:
        raise DsctlError(
            f"{lora.path} has no layers for the {component}, only for {', '.join(sorted(lora.components))}",
            hint="check that this LoRA is for this model",
        )
    unknown = [name for name in layers if name not in shapes]
    if unknown:
        raise DsctlError(
            f"{lora.path} is for another model: {len(unknown)} of its {len(layers)} layers are not in this one, "
            f"{unknown[0]} first",
            hint="check that the LoRA was trained on this model",
        )
    for name, layer in layers.items():
        if shapes[name] != layer.shape:
            raise DsctlError(
                f"{lora.path} is for another model: {name} is {shapes[name][0]}x{shapes[name][1]} here and "
                f"{layer.shape[0]}x{layer.shape[1]} in the LoRA",
                hint="check that the LoRA was trained on this model",
            )
    return layers


def load_lora(pipe: BasePipeline, path: Path, scale: float = 1.0) -> LoraFile:
    """Add the LoRA in `path` to the components of `pipe` it is for, at `scale`, beside those that are there already.

    The weights of the base stay as they are. Scale zero gives the base's output exactly.
    """
    lora = read_lora(path, tuple(pipe.components))
    for component in lora.components:
        model = pipe.component(component)
        _attach(model, _layers_for(model, component, lora), scale)
    return lora


def _attach(model: nn.Module, layers: dict[str, LoraLayer], scale: float) -> None:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer as PeftLayer

    present = {name for m in model.modules() if isinstance(m, PeftLayer) for name in m.lora_A}
    adapter = f"lora_{len(present)}"
    first = next(iter(layers.values()))
    config = LoraConfig(
        r=first.rank,
        lora_alpha=first.rank,
        target_modules=list(layers),
        rank_pattern={name: layer.rank for name, layer in layers.items()},
        alpha_pattern={name: layer.rank for name, layer in layers.items()},
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # A second adapter is what is wanted here; peft warns of it.
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(config, model, adapter_name=adapter)
    for name, tuner in tuner_layers(model, adapter).items():
        with torch.no_grad():
            for part, value in (("lora_A", layers[name].down), ("lora_B", layers[name].up)):
                linear = getattr(tuner, part)[adapter]
                linear.weight.data = value.to(linear.weight.device, torch.float32)
        tuner.scaling[adapter] = scale * layers[name].scale
    for module in model.modules():
        if isinstance(module, PeftLayer):
            module.set_adapter(list(module.lora_A))
    model.requires_grad_(False)


@torch.no_grad()
def fuse_lora(pipe: BasePipeline, path: Path, component: str | None, scale: float = 1.0) -> None:
    """Add the LoRA in `path` to the weights of one component: W + scale * B @ A, computed in float32.

    `component` None means every component that the file has layers for.
    """
    lora = read_lora(path, tuple(pipe.components))
    for name in lora.components if component is None else [component]:
        model = pipe.component(name)
        modules = linear_layers(model)
        for layer_name, layer in _layers_for(model, name, lora).items():
            weight = modules[layer_name].weight
            update = layer.up.float() @ layer.down.float() * (scale * layer.scale)
            weight.copy_((weight.float() + update.to(weight.device)).to(weight.dtype))
