"""LoRA layers on a model, through peft: put in new ones, load trained ones, fuse them into the weights, take them out.

The update of a linear layer is W + (alpha / R) * B @ A with A (R, in) and B (out, R)
(Hu et al. 2021, arXiv:2106.09685).
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dsctl_core.errors import DsctlError
from dsctl_core.family import OriginalNames
from dsctl_core.lora.dora import row_norms, update_of, with_strength
from dsctl_core.lora.dropout import put_dropout
from dsctl_core.lora.files import read_lora, unnamed_layers
from dsctl_core.lora.formats import DENOISER, FORMATS, Layers, LoraFile, LoraLayer, encode, with_dots
from dsctl_core.lora.targets import exactly, find_targets, linear_layers

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline

TRAINED = "default"  # the name peft gives to the one adapter that is being trained


def add_lora(
    model: nn.Module,
    target_modules: Sequence[str],
    rank: int,
    alpha: float | None = None,
    seed: int = 0,
    *,
    dropout: float = 0.0,
    use_dora: bool = False,
    use_rslora: bool = False,
) -> list[str]:
    """Put a trainable LoRA on the linear layers of `model` that `target_modules` mean (see `find_targets`).

    A starts at random from `seed`, B at zero, so the model's output does not change. Both are float32 whatever the
    dtype of the model, because small updates are lost in 16 bits. `alpha` None means `rank`. The update counts
    alpha / rank times, with `use_rslora` alpha / sqrt(rank) times (Kalajdzievski 2023, arXiv:2312.03732).
    With `use_dora` the length of every row of the weight is learned too. Returns the layers' names.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = find_targets(model, target_modules)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=exactly(names), lora_dropout=0.0, use_dora=use_dora)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=TRAINED)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    layers = tuner_layers(model)
    for layer in layers.values():
        layer.scaling[TRAINED] = scale_of(rank, alpha, use_rslora=use_rslora)
        if use_dora:
            # Computed again: the one that peft starts from is rounded to the precision of the weight.
            layer.lora_magnitude_vector[TRAINED].weight.data = row_norms(layer.get_base_layer().weight.data)
    if dropout > 0:
        put_dropout(list(layers.values()), TRAINED, dropout)
    return names


def scale_of(rank: int, alpha: float | None, *, use_rslora: bool) -> float:
    """Return how many times the update counts: alpha / rank, or with rsLoRA alpha / sqrt(rank)."""
    return (rank if alpha is None else alpha) / (math.sqrt(rank) if use_rslora else rank)


def tuner_layers(model: nn.Module, adapter: str = TRAINED) -> dict[str, Any]:
    """Return peft's LoRA layers of `model` that carry `adapter`, by the name of the layer they wrap."""
    from peft.tuners.lora import LoraLayer as PeftLayer

    return {n: m for n, m in model.named_modules() if isinstance(m, PeftLayer) and adapter in m.lora_A}


def trained_layers(model: nn.Module) -> Layers:
    """Return the LoRA that is being trained on `model`, by the name of the layer that each part is on."""
    return {
        name: LoraLayer(
            layer.lora_A[TRAINED].weight,
            layer.lora_B[TRAINED].weight,
            layer.scaling[TRAINED],
            layer.lora_magnitude_vector[TRAINED].weight if TRAINED in layer.lora_magnitude_vector else None,
        )
        for name, layer in tuner_layers(model).items()
    }


def export_lora(model: nn.Module, component: str, unnamed: str = DENOISER) -> dict[str, Tensor]:
    """Return the trained LoRA of `model` as tensors of the default format: float32, alpha folded into lora_B.

    See dsctl_core.lora.formats.encode for `unnamed`.
    """
    return encode(trained_layers(model), component, FORMATS["diffusers"], unnamed)


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the shape (out, in) of every linear layer of `model`, by name."""
    return {name: (layer.out_features, layer.in_features) for name, layer in linear_layers(model).items()}


def continue_lora(
    model: nn.Module,
    component: str,
    path: Path,
    original: OriginalNames | None = None,
    unnamed: str = DENOISER,
) -> None:
    """Copy the LoRA in `path` into the trainable one on `model`; both must cover the same layers at the same rank.

    `original` are the model's original layer names, which the file may have; see dsctl_core.lora.files.read_lora for
    `unnamed`.
    """
    loaded = _layers_for(model, component, read_lora(path, (component,), [original], unnamed))
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
        magnitude = loaded[name].magnitude
        if (magnitude is None) == (TRAINED in layer.lora_magnitude_vector):
            kind = "a plain LoRA" if magnitude is None else "a DoRA"
            raise DsctlError(
                f"{path} is {kind}, which this run does not train",
                hint=f"{'leave --use-dora out' if magnitude is None else 'give --use-dora'}",
            )
        with torch.no_grad():
            if magnitude is not None:
                layer.lora_magnitude_vector[TRAINED].weight.copy_(magnitude)
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


def load_lora(pipe: BasePipeline, path: Path, scale: float = 1.0, component: str | None = None) -> LoraFile:
    """Add the LoRA in `path` to the components of `pipe` it is for, at `scale`, beside those that are there already.

    The weights of the base stay as they are. Scale zero gives the base's output exactly. `component` is the one that it
    is for (None: those that its header, or else its layers, name): a file that other tools made for one of several
    denoisers does not say for which, and one that says another is a DsctlError.
    """
    lora = _read_for(pipe, path, component)
    for name in lora.components if component is None else [component]:
        model = pipe.component(name)
        _attach(model, _layers_for(model, name, lora), scale)
    return lora


def _read_for(pipe: BasePipeline, path: Path, component: str | None) -> LoraFile:
    denoisers = [denoiser.name for denoiser in pipe.parts.denoisers]
    unnamed = DENOISER if component is None else unnamed_layers(component, denoisers)
    return read_lora(path, tuple(pipe.components), [pipe.family.original_names], unnamed)


def _attach(model: nn.Module, layers: dict[str, LoraLayer], scale: float) -> None:
    from peft.tuners.lora import LoraLayer as PeftLayer

    present = {name for m in model.modules() if isinstance(m, PeftLayer) for name in m.lora_A}
    kinds = [{n: x for n, x in layers.items() if (x.magnitude is None) is plain} for plain in (True, False)]
    for number, some in enumerate(kinds):
        if some:
            _attach_kind(model, some, scale, f"lora_{len(present)}" + ("_dora" if number else ""))
    for module in model.modules():
        if isinstance(module, PeftLayer):
            module.set_adapter(list(module.lora_A))
    model.requires_grad_(False)


def _attach_kind(model: nn.Module, layers: dict[str, LoraLayer], scale: float, adapter: str) -> None:
    """Attach `layers`, all DoRAs or none, as the adapter of that name."""
    from peft import LoraConfig, inject_adapter_in_model

    first = next(iter(layers.values()))
    config = LoraConfig(
        r=first.rank,
        lora_alpha=first.rank,
        target_modules=exactly(list(layers)),
        rank_pattern={f"^{re.escape(name)}$": layer.rank for name, layer in layers.items()},
        alpha_pattern={f"^{re.escape(name)}$": layer.rank for name, layer in layers.items()},
        use_dora=first.magnitude is not None,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # A second adapter is what is wanted here; peft warns of it.
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(config, model, adapter_name=adapter)
    for name, tuner in tuner_layers(model, adapter).items():
        weight = tuner.get_base_layer().weight.data
        # The strength of a DoRA is not a factor of its update, so it goes into the layer.
        layer = with_strength(weight, _on(weight.device, layers[name]), scale)
        values = [(tuner.lora_A, layer.down), (tuner.lora_B, layer.up)]
        if layer.magnitude is not None:
            values.append((tuner.lora_magnitude_vector, layer.magnitude))
        for part, value in values:
            part[adapter].weight.data = value.float()
        tuner.scaling[adapter] = layer.scale if layer.magnitude is not None else scale * layer.scale


def _on(device: torch.device, layer: LoraLayer) -> LoraLayer:
    magnitude = None if layer.magnitude is None else layer.magnitude.to(device)
    return replace(layer, down=layer.down.to(device), up=layer.up.to(device), magnitude=magnitude)


@torch.no_grad()
def fuse_lora(pipe: BasePipeline, path: Path, component: str | None, scale: float = 1.0) -> None:
    """Add the LoRA in `path` to the weights of one component: W + scale * s * B @ A, computed in float32.

    `component` None means every component that the file has layers for.
    """
    lora = _read_for(pipe, path, component)
    for name in lora.components if component is None else [component]:
        model = pipe.component(name)
        modules = linear_layers(model)
        for layer_name, layer in _layers_for(model, name, lora).items():
            weight = modules[layer_name].weight
            weight.copy_((weight.float() + update_of(weight, layer, scale)).to(weight.dtype))
