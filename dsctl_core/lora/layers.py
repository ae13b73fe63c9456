"""Add LoRA layers to a model with peft, load trained ones, fuse them into the weights, and export them.

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
from dsctl_core.family import Family, OriginalNames
from dsctl_core.lora.dora import row_norms, update_of, with_strength
from dsctl_core.lora.dropout import put_dropout
from dsctl_core.lora.files import read_lora, refuse_other_family, unnamed_layers
from dsctl_core.lora.formats import Layers, LoraFile, LoraLayer, encode, format_for, with_dots
from dsctl_core.lora.names import DENOISER
from dsctl_core.lora.targets import exactly, find_targets, linear_layers

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline

TRAINED = "default"  # peft's name for the adapter that is being trained


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
    """Add a trainable LoRA to linear layers of `model` and return their names.

    A is initialized at random and B with zeros, so the output of the model does not change. Both are float32 whatever
    the dtype of the model, because small updates are lost in 16 bits.

    Args:
        model: The component to train.
        target_modules: Which linear layers get a LoRA; see `find_targets`.
        rank: Rank of each update.
        alpha: Numerator of the scale alpha / rank (None: `rank`).
        seed: Seed of the initialization of A.
        dropout: Probability with which elements of the input of the LoRA are zeroed in training.
        use_dora: Also learn the norm of each row of the weights; see dsctl_core.lora.dora.
        use_rslora: Scale by alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023, arXiv:2312.03732).
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
            # Recomputed in float32: peft initializes it rounded to the precision of the weight.
            layer.lora_magnitude_vector[TRAINED].weight.data = row_norms(layer.get_base_layer().weight.data)
    if dropout > 0:
        put_dropout(list(layers.values()), TRAINED, dropout)
    return names


def scale_of(rank: int, alpha: float | None, *, use_rslora: bool) -> float:
    """Return the scale of an update: alpha / rank, or with rsLoRA alpha / sqrt(rank)."""
    return (rank if alpha is None else alpha) / (math.sqrt(rank) if use_rslora else rank)


def tuner_layers(model: nn.Module, adapter: str = TRAINED) -> dict[str, Any]:
    """Return the peft layers of `model` that have `adapter`, by the name of the layer that they wrap."""
    from peft.tuners.lora import LoraLayer as PeftLayer

    return {n: m for n, m in model.named_modules() if isinstance(m, PeftLayer) and adapter in m.lora_A}


def trained_layers(model: nn.Module) -> Layers:
    """Return the layers of the LoRA that is being trained on `model`, by name."""
    return {
        name: LoraLayer(
            layer.lora_A[TRAINED].weight,
            layer.lora_B[TRAINED].weight,
            layer.scaling[TRAINED],
            layer.lora_magnitude_vector[TRAINED].weight if TRAINED in layer.lora_magnitude_vector else None,
        )
        for name, layer in tuner_layers(model).items()
    }


def export_lora(
    model: nn.Module, component: str, unnamed: str = DENOISER, original: OriginalNames | None = None
) -> dict[str, Tensor]:
    """Return the trained LoRA of `model` as tensors in the default format: float32, with alpha folded into lora_B.

    See `dsctl_core.lora.formats.encode` for `unnamed`; `original` are the original layer names of the model.
    """
    return encode(trained_layers(model), component, format_for("diffusers", original), unnamed)


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the shape (out, in) of each linear layer of `model`, by name."""
    return {name: (layer.out_features, layer.in_features) for name, layer in linear_layers(model).items()}


def continue_lora(
    model: nn.Module,
    component: str,
    path: Path,
    original: OriginalNames | None = None,
    unnamed: str = DENOISER,
    family: Family | None = None,
) -> None:
    """Copy the LoRA in the file `path` into the trainable LoRA of `model`.

    Raises DsctlError unless both have the same layers with the same ranks. `original` are the original layer names of
    the model, which the file may use; see `dsctl_core.lora.files.read_lora` for `unnamed`. `family` is that of the
    model, for files that name theirs.
    """
    lora = read_lora(path, (component,), [original], unnamed)
    if family is not None:
        refuse_other_family(lora, family)
    loaded = _layers_for(model, component, lora)
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
    """Return the layers of `lora` for `component`, checked against the shapes of `model`."""
    return layers_for(linear_shapes(model), component, lora)


def layers_for(shapes: dict[str, tuple[int, int]], component: str, lora: LoraFile) -> Layers:
    """Return the layers of `lora` for `component`, which has linear layers with these `shapes`.

    Raises DsctlError for a LoRA of another component, family or model size.
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
    """Load the LoRA in `path` onto its components of `pipe`, in addition to LoRAs that are already loaded.

    The base weights are unchanged, and `scale` 0 gives exactly the output of the base model. `component` is the target
    (None: the components that the header or the layer names specify); it is needed for files of other tools if the
    model has several denoisers. Raises DsctlError if the file is for another component.
    """
    lora = _read_for(pipe, path, component)
    for name in lora.components if component is None else [component]:
        model = pipe.component(name)
        _attach(model, _layers_for(model, name, lora), scale)
    return lora


def _read_for(pipe: BasePipeline, path: Path, component: str | None) -> LoraFile:
    denoisers = [denoiser.name for denoiser in pipe.parts.denoisers]
    unnamed = DENOISER if component is None else unnamed_layers(component, denoisers)
    lora = read_lora(path, tuple(pipe.components), [pipe.family.original_names], unnamed)
    refuse_other_family(lora, pipe.family)
    return lora


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
    """Attach `layers`, either all DoRAs or none, as the peft adapter `adapter`."""
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
        # peft warns of a second adapter, which is intended here.
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(config, model, adapter_name=adapter)
    for name, tuner in tuner_layers(model, adapter).items():
        weight = tuner.get_base_layer().weight.data
        # The strength of a DoRA is not a factor of its update, so the layer itself is changed.
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
    """Add the LoRA in `path` to the weights of `component`: W + scale * s * B @ A, computed in float32.

    `component` None means all components for which the file has layers.
    """
    lora = _read_for(pipe, path, component)
    for name in lora.components if component is None else [component]:
        model = pipe.component(name)
        modules = linear_layers(model)
        for layer_name, layer in _layers_for(model, name, lora).items():
            weight = modules[layer_name].weight
            weight.copy_((weight.float() + update_of(weight, layer, scale)).to(weight.dtype))
