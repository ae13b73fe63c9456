"""Put adapter layers of peft on a model, and read and set their matrices: LoRA, DoRA, LoKr and LoHa."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dsctl_core.errors import UsageError
from dsctl_core.lora.dora import row_norms
from dsctl_core.lora.dropout import put_dropout
from dsctl_core.lora.layer import LoraLayer, Network, Update
from dsctl_core.lora.lycoris import LohaLayer, LokrLayer
from dsctl_core.lora.targets import exactly

TRAINED = "default"  # peft's name for the adapter that is being trained
PARAMETER = re.compile(r"\.(?:lora|lokr|hada)_")  # in the names of the parameters of all adapters
WHOLE = 2**31  # a rank with which peft keeps both matrices of a LoKr whole


@dataclass(frozen=True)
class NetworkSettings:
    """The kind and the sizes of a network to train.

    Args:
        network: "lora", "lokr" or "loha".
        rank: Rank of the low-rank products.
        alpha: Numerator of the scale alpha / rank (None: `rank`).
        dropout: Of a LoRA: the probability with which elements of its input are zeroed in training.
        use_dora: Of a LoRA: also learn the norm of each row of the weights; see dsctl_core.lora.dora.
        use_rslora: Of a LoRA: scale by alpha / sqrt(rank), not alpha / rank (Kalajdzievski 2023, arXiv:2312.03732).
        factor: Of a LoKr: the sides that w1 has if they divide those of the weight, else the divisors next below (None:
            those next to the square root).
        decompose_both: Of a LoKr: w1 too is a low-rank product.
        full_matrix: Of a LoKr: neither w1 nor w2 is one.
    """

    network: Network = "lora"
    rank: int = 32
    alpha: float | None = None
    dropout: float = 0.0
    use_dora: bool = False
    use_rslora: bool = False
    factor: int | None = None
    decompose_both: bool = False
    full_matrix: bool = False

    @property
    def scale(self) -> float:
        """The scale of an update: alpha / rank, or with rsLoRA alpha / sqrt(rank)."""
        return scale_of(self.rank, self.alpha, use_rslora=self.use_rslora)

    def described(self) -> dict[str, str]:
        """Return the settings for the header of a file."""
        kind = "dora" if self.use_dora else self.network
        sizes = {} if self.full_matrix else {"rank": str(self.rank), "alpha": f"{self.alpha or self.rank:g}"}
        if self.network == "lokr":
            sizes["factor"] = str(-1 if self.factor is None else self.factor)
        flags = ("use_dora", "use_rslora", "decompose_both", "full_matrix")
        return {"network": kind, **sizes, **{name: "true" for name in flags if getattr(self, name)}}


def scale_of(rank: int, alpha: float | None, *, use_rslora: bool) -> float:
    """Return the scale of an update: alpha / rank, or with rsLoRA alpha / sqrt(rank)."""
    return (rank if alpha is None else alpha) / (math.sqrt(rank) if use_rslora else rank)


def add_trained(model: nn.Module, names: Sequence[str], settings: NetworkSettings, seed: int) -> None:
    """Add a network to the layers `names` of `model`, and make it the only thing that is trained.

    Its output is zero at first. All of its parameters are float32, whatever the dtype of the model. Raises UsageError
    for an alpha that has no effect, because all matrices of a LoKr are whole.
    """
    from peft import inject_adapter_in_model

    from dsctl_core.lora.fused import fuse_lora_sums

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(_config(names, settings), model, adapter_name=TRAINED)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(PARAMETER.search(name) is not None)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    layers = tuner_layers(model)
    for layer in layers.values():
        layer.scaling[TRAINED] = settings.scale if update_in(layer, TRAINED).rank is not None else 1.0
        if settings.use_dora:
            # Recomputed in float32: peft initializes it rounded to the precision of the weight.
            layer.lora_magnitude_vector[TRAINED].weight.data = row_norms(layer.get_base_layer().weight.data)
    if settings.alpha is not None and all(update_in(layer, TRAINED).rank is None for layer in layers.values()):
        raise UsageError(
            f"alpha has no effect on this LoKr: at rank {settings.rank} all of its matrices are whole",
            hint="leave it out, or give a smaller rank or factor",
        )
    if settings.dropout > 0:
        put_dropout(list(layers.values()), TRAINED, settings.dropout)
    fuse_lora_sums(model)


def _config(names: Sequence[str], settings: NetworkSettings) -> Any:
    """Return peft's config of a network with the scale 1."""
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    targets, rank = exactly(names), settings.rank
    if settings.network == "loha":
        return LoHaConfig(r=rank, alpha=rank, target_modules=targets)
    if settings.network == "lora":
        return LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, use_dora=settings.use_dora)
    rank = WHOLE if settings.full_matrix else rank
    return LoKrConfig(
        r=rank,
        alpha=rank,
        target_modules=targets,
        decompose_factor=-1 if settings.factor is None else settings.factor,
        decompose_both=settings.decompose_both,
        init_weights="lycoris",  # w2 is zero at first, not w1
    )


def attach(model: nn.Module, layers: Mapping[str, Update], adapter: str) -> None:
    """Attach `layers`, all of one network and either all DoRAs or none, to `model` as the adapter `adapter`."""
    from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model

    first, targets = next(iter(layers.values())), exactly(list(layers))
    config: Any
    if isinstance(first, LoraLayer):
        ranks = {f"^{re.escape(name)}$": layer.rank for name, layer in layers.items()}
        config = LoraConfig(
            r=first.rank,
            lora_alpha=first.rank,
            target_modules=targets,
            rank_pattern=ranks,
            alpha_pattern=ranks,
            use_dora=first.magnitude is not None,
        )
    else:
        # Small ones, which `set_update` replaces: peft could not make every factorization that a file can have.
        config = (LoKrConfig if isinstance(first, LokrLayer) else LoHaConfig)(r=1, alpha=1, target_modules=targets)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft warns of a second adapter, which is intended here.
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(config, model, adapter_name=adapter)
    for name, tuner in tuner_layers(model, adapter).items():
        set_update(tuner, adapter, layers[name])


def set_update(tuner: Any, adapter: str, layer: Update) -> None:
    """Set the matrices of `adapter` of a layer of peft to those of `layer`, of the same network, in float32."""
    device = tuner.get_base_layer().weight.device
    if isinstance(layer, LoraLayer):
        values = [(tuner.lora_A, layer.down), (tuner.lora_B, layer.up)]
        if layer.magnitude is not None:
            values.append((tuner.lora_magnitude_vector, layer.magnitude))
        for part, value in values:
            part[adapter].weight.data = value.to(device).float()
    else:
        for name in tuner.adapter_layer_names:
            own = getattr(tuner, name)
            if adapter in own:
                del own[adapter]
        for name, value in layer.parts().items():
            getattr(tuner, name)[adapter] = nn.Parameter(value.to(device).float().contiguous())
    tuner.scaling[adapter] = layer.scale


def tuner_layers(model: nn.Module, adapter: str = TRAINED) -> dict[str, Any]:
    """Return the peft layers of `model` that have `adapter`, by the name of the layer that they wrap."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        name.replace(".base_layer", ""): module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and adapter in adapters_of(module)
    }


def adapters_of(tuner: Any) -> list[str]:
    """Return the names of the adapters of a peft layer, in the order in which they were added."""
    return list(dict.fromkeys(name for part in tuner.adapter_layer_names for name in getattr(tuner, part)))


def update_in(tuner: Any, adapter: str) -> Update:
    """Return the update that `adapter` of a peft layer computes, with its parameters themselves."""
    scale = tuner.scaling[adapter]
    if hasattr(tuner, "lora_A"):
        magnitude = tuner.lora_magnitude_vector[adapter].weight if adapter in tuner.lora_magnitude_vector else None
        return LoraLayer(tuner.lora_A[adapter].weight, tuner.lora_B[adapter].weight, scale, magnitude)
    kind, key = (LokrLayer, "lokr_w") if hasattr(tuner, "lokr_w1") else (LohaLayer, "hada_w")
    factors = []
    for number in (1, 2):
        parts = [getattr(tuner, f"{key}{number}{end}", {}) for end in ("", "_a", "_b")]
        factors.append(tuple(part[adapter] for part in parts if adapter in part))
    return kind(factors[0], factors[1], scale)
