"""Train a LoRA, a LoKr or a LoHa on a model, load trained ones, fuse them into the weights, and export them.

With a LoRA, the weight of a linear layer is W + (alpha / R) * B @ A with A (R, in) and B (out, R) (Hu et al. 2021,
arXiv:2106.09685); the updates of the other networks are in dsctl_core.lora.lycoris.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.family import Family, OriginalNames
from dsctl_core.lora.adapters import (
    TRAINED,
    NetworkSettings,
    adapters_of,
    add_trained,
    attach,
    tuner_layers,
    update_in,
)
from dsctl_core.lora.dora import update_of, with_strength
from dsctl_core.lora.files import read_lora, refuse_other_family, unnamed_layers
from dsctl_core.lora.formats import Layers, LoraFile, encode, format_for, with_dots
from dsctl_core.lora.layer import LoraLayer, Update
from dsctl_core.lora.lycoris import LokrLayer, whole_matrix
from dsctl_core.lora.names import DENOISER
from dsctl_core.lora.targets import find_targets, linear_layers
from dsctl_core.memory.frozen_linear import FrozenLinear
from dsctl_core.options.lora import TITLES
from dsctl_core.readable import counted

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline


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
    settings = NetworkSettings(rank=rank, alpha=alpha, dropout=dropout, use_dora=use_dora, use_rslora=use_rslora)
    return add_network(model, target_modules, settings, seed)


def add_network(model: nn.Module, target_modules: Sequence[str], settings: NetworkSettings, seed: int = 0) -> list[str]:
    """Add a trainable LoRA, LoKr or LoHa to linear layers of `model` and return their names.

    The output of the model does not change. `target_modules` are the layers, see `find_targets`; `seed` is that of the
    matrices that are not zero at first.
    """
    names = find_targets(model, target_modules)
    add_trained(model, names, settings, seed)
    return names


def trained_layers(model: nn.Module) -> Layers:
    """Return the layers of the network that is being trained on `model`, by name."""
    return {name: update_in(layer, TRAINED) for name, layer in tuner_layers(model).items()}


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
        _refuse_other_kind(path, update_in(layer, TRAINED), loaded[name])
        with torch.no_grad():
            _copy(layer, loaded[name])


def _refuse_other_kind(path: Path, own: Update, other: Update) -> None:
    """Raise DsctlError unless `other`, from the file `path`, has matrices of the same shapes as `own`, in training."""
    if own.network != other.network:
        raise DsctlError(
            f"{path} is a {TITLES[other.network]}, and this run trains a {TITLES[own.network]}",
            hint=f"give --network {other.network}, or leave --lora-checkpoint out",
        )
    products = {"lokr", "loha"} & {other.network}
    if products and (other.magnitude is not None or (isinstance(other, LokrLayer) and other.span is not None)):
        what = "magnitudes" if other.magnitude is not None else "layers that are one with others"
        raise DsctlError(
            f"{path} is a {TITLES[other.network]} with {what}, which no run trains",
            hint="give it as --preset-lora-path, to learn the difference to it",
        )
    if own.rank != other.rank and own.rank is not None and other.rank is not None:
        raise DsctlError(
            f"{path} has rank {other.rank}, but this run trains rank {own.rank}",
            hint=f"give --lora-rank {other.rank}",
        )
    if (other.magnitude is None) != (own.magnitude is None):
        kind = "a plain LoRA" if other.magnitude is None else f"a {TITLES['dora']}"
        raise DsctlError(
            f"{path} is {kind}, which this run does not train",
            hint="give --network lora" if other.magnitude is None else "give --network dora",
        )
    shapes = [{key: tuple(part.shape) for key, part in each.parts().items()} for each in (own, other)]
    if shapes[0] != shapes[1]:
        trains, has = (", ".join(f"{key} {a}x{b}" for key, (a, b) in each.items()) for each in shapes)
        raise DsctlError(
            f"{path} is a LoKr of other factors: it has {has}, and this run trains {trains}",
            hint="give the --lokr-factor, --lokr-decompose-both or --lokr-full-matrix that it was trained with",
        )


def _copy(tuner: nn.Module, layer: Update) -> None:
    """Copy the matrices of `layer` into the trained parameters of `tuner`, with the scale that these have."""
    own = update_in(tuner, TRAINED)
    scaled = {"lora": "up"}.get(layer.network) or next(iter(own.parts()))
    for key, parameter in own.parts().items():
        parameter.copy_(layer.parts()[key] * (layer.scale / own.scale) if key == scaled else layer.parts()[key])
    if own.magnitude is not None and layer.magnitude is not None:
        own.magnitude.copy_(layer.magnitude)


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
            f"{lora.path} is for another model: {len(unknown)} of its {counted(len(layers), 'layer')} "
            f"{'is' if len(unknown) == 1 else 'are'} not in this one, "
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


def _attach(model: nn.Module, layers: Layers, scale: float) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    number = len(
        {name for tuner in model.modules() if isinstance(tuner, BaseTunerLayer) for name in adapters_of(tuner)}
    )
    linear, kinds = linear_layers(model), dict[str, dict[str, Update]]()
    with torch.no_grad():
        for name, layer in layers.items():
            alone = not isinstance(model.get_submodule(name), BaseTunerLayer)
            ready = _attachable(linear[name].weight.data, layer, scale, alone)
            kind = "dora" if ready.magnitude is not None else str(ready.network)
            kinds.setdefault(kind, {})[name] = ready
    for kind, own in kinds.items():
        attach(model, own, f"adapter_{number}_{kind}")
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter(adapters_of(module))
    model.requires_grad_(False)


def _attachable(weight: Tensor, layer: Update, strength: float, alone: bool) -> Update:
    """Return what layers of peft can add for `layer` at `strength`: where they have nothing like it, the whole matrix.

    That is so for rows of a LoKr, for magnitudes on anything but a LoRA, and for a DoRA on a layer that has another
    adapter (not `alone`), of which peft would take the output for that of the base.
    """
    layer = layer.mapped(lambda tensor: tensor.to(weight.device))
    if layer.magnitude is not None:
        if isinstance(layer, LoraLayer) and alone:
            return with_strength(weight, layer, strength)
        return whole_matrix(update_of(weight, layer, strength))
    layer = layer.with_values(scale=layer.scale * strength, magnitude=None)
    if isinstance(layer, LokrLayer) and layer.span is not None:
        return whole_matrix(layer.mapped(lambda tensor: tensor.float()).matrix(), layer.scale)
    return layer


@torch.no_grad()
def fuse_lora(pipe: BasePipeline, path: Path, component: str | None, scale: float = 1.0) -> None:
    """Add the LoRA in `path` to the weights of `component`: W + scale * s * B @ A, computed in float32.

    `component` None means all components for which the file has layers. Raises UsageError for weights in few bits.
    """
    lora = _read_for(pipe, path, component)
    for name in lora.components if component is None else [component]:
        model = pipe.component(name)
        modules = linear_layers(model)
        for layer_name, layer in _layers_for(model, name, lora).items():
            if isinstance(modules[layer_name], FrozenLinear):
                raise UsageError(
                    f"the {name} is held in few bits, so {path} cannot be merged into it",
                    hint="load its weights in bf16, and pack them afterwards",
                )
            weight = modules[layer_name].weight
            weight.copy_((weight.float() + update_of(weight, layer, scale)).to(weight.dtype))


@torch.no_grad()
def fuse_loras(pipe: BasePipeline, loras: Sequence[tuple[Path, float]], attached: Collection[str] = ()) -> None:
    """Add the LoRAs in files, each with its scale, to the weights of their components, as `load_lora` has their sum.

    W + sum of scale * update is computed in float32 from the weights as they are, and rounded once. In the components
    `attached`, whose weights are to be packed, and where a weight is packed already, the LoRAs are attached instead.
    """
    gathered: dict[str, dict[str, list[tuple[Update, float]]]] = {}
    for path, scale in loras:
        lora = _read_for(pipe, path, None)
        for name in lora.components:
            model = pipe.component(name)
            layers = _layers_for(model, name, lora)
            if name in attached or any(isinstance(layer, FrozenLinear) for layer in linear_layers(model).values()):
                _attach(model, layers, scale)
                continue
            for layer_name, layer in layers.items():
                gathered.setdefault(name, {}).setdefault(layer_name, []).append((layer, scale))
    for name, changes in gathered.items():
        modules = linear_layers(pipe.component(name))
        for layer_name, parts in changes.items():
            weight = modules[layer_name].weight
            whole = weight.float() + sum(update_of(weight, layer, scale) for layer, scale in parts)
            weight.copy_(whole.to(weight.dtype))
