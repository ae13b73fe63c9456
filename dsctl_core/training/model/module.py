"""Define DiffusionTrainingModule, a pipeline as a trainable module: freezing, LoRA, fp8 storage and export."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dsctl_core.errors import UsageError, unknown_name
from dsctl_core.lora.adapters import NetworkSettings, tuner_layers
from dsctl_core.lora.files import unnamed_layers
from dsctl_core.lora.layers import add_network, continue_lora, export_lora, fuse_lora
from dsctl_core.lora.targets import AUTO
from dsctl_core.memory.dtypes import cast_weights
from dsctl_core.memory.offload import offloaded_numbers
from dsctl_core.memory.quantize import packed_numbers
from dsctl_core.pipeline import BasePipeline
from dsctl_core.random import derive_seed
from dsctl_core.scheduler import TRAINING_LEVELS
from dsctl_core.training.model.weight_edits import WeightEdits

NetworkName = Literal["lora", "dora", "lokr", "loha"]


@dataclass
class TrainedComponent:
    """The trained part of one component, and how its weights are saved."""

    name: str
    lora: bool
    parts: tuple[str, ...] = ()  # names of the fully trained modules; "" is the whole component
    description: dict[str, str] = field(default_factory=dict)


def split_names(names: str | Sequence[str] | None) -> list[str]:
    """Return the names in a sequence or a comma-separated string as a list."""
    if names is None:
        return []
    parts = names.split(",") if isinstance(names, str) else names
    return [part.strip() for part in parts if part.strip()]


class DiffusionTrainingModule(nn.Module):
    """Base class of training modules: a subclass sets `self.pipe` and implements `forward(data)`, the loss.

    Parameter names start at this module, so those of the denoiser begin with `pipe.dit.`.
    """

    pipe: BasePipeline
    sample_losses: Tensor | None
    static_graph = False  # whether every step computes with the same trained weights, as far as it is known

    def __init__(self) -> None:
        super().__init__()
        self.trained: list[TrainedComponent] = []
        self.sample_losses = None  # (B,), of the last batch, where the module tells them

    def switch_pipe_to_training_mode(
        self,
        pipe: BasePipeline,
        *,
        trainable_models: str | Sequence[str] | None = None,
        lora_base_model: str | Sequence[str] | None = None,
        lora_target_modules: str | Sequence[str] | None = None,
        network: NetworkName = "lora",
        lora_rank: int = 32,
        lora_alpha: float | None = None,
        lora_dropout: float = 0.0,
        use_dora: bool = False,
        use_rslora: bool = False,
        lokr_factor: int | None = None,
        lokr_decompose_both: bool = False,
        lokr_full_matrix: bool = False,
        lora_checkpoint: str | Path | None = None,
        preset_lora_path: str | Path | None = None,
        preset_lora_model: str | None = None,
        loras: Sequence[tuple[str | Path, float]] = (),
        fp8_models: str | Sequence[str] | None = None,
        quantized: Mapping[str, str] | None = None,
        packed_on: torch.device | None = None,
        seed: int = 0,
        divided: Collection[str] = (),
    ) -> None:
        """Freeze `pipe`, make the selected parts trainable in float32, and set the schedule for training.

        Args:
            pipe: the pipeline, with its components loaded.
            trainable_models: components ("dit") or modules in them ("dit.proj_out", "dit.transformer_blocks.*.attn").
            lora_base_model: the components that get a LoRA each.
            network: what they get for a LoRA: "lora", "dora", "lokr" or "loha".
            lora_target_modules: the layers of the LoRA, see `find_targets` (None: the family's published list for a
                denoiser, "auto" for other components).
            lora_rank: the rank of the LoRA.
            lora_alpha: the alpha of the LoRA (None: the rank).
            lora_dropout: the dropout probability of the LoRA's inputs.
            use_dora: train a DoRA.
            use_rslora: scale the LoRA by alpha / sqrt(rank).
            lokr_factor: the factor of a LoKr; see `NetworkSettings`, also for the next two.
            lokr_decompose_both: w1 is low-rank too. lokr_full_matrix: neither w1 nor w2 is.
            lora_checkpoint: the LoRA file to start from.
            preset_lora_path: a LoRA file that is fused into `preset_lora_model` first, so that only the rest is
            learned. preset_lora_model: the component of `preset_lora_path` (None: the first denoiser).
            loras: LoRA files and scales, fused into every component that they have layers for.
            fp8_models: components to store in float8. They must not be trained themselves; a LoRA on them may be.
            quantized: components to hold in a format of dsctl_core.memory.quantize, with the same limits.
            packed_on: the device of what these two are packed into (None: that of the pipeline).
            seed: the seed of the LoRA's initial weights.
            divided: components whose weights keep their dtypes for now: what divides them between processes casts
                each process's part.
        """
        full = split_names(trainable_models)
        use_dora = use_dora or network == "dora"
        settings = NetworkSettings(
            network="lora" if network == "dora" else network,
            rank=lora_rank,
            alpha=lora_alpha,
            dropout=lora_dropout,
            use_dora=use_dora,
            use_rslora=use_rslora,
            factor=lokr_factor,
            decompose_both=lokr_decompose_both,
            full_matrix=lokr_full_matrix,
        )
        adapted, edits = split_names(lora_base_model), WeightEdits(tuple(split_names(fp8_models)))
        edits = replace(edits, quantized=tuple((quantized or {}).items()))
        for each in adapted:
            if any(name.split(".")[0] == each for name in full):
                raise UsageError(f"{each} cannot be trained whole and get a LoRA at once", hint="choose one of the two")
        if lora_checkpoint is not None and len(adapted) > 1:
            raise UsageError(
                f"one LoRA to go on from is given, but {' and '.join(adapted)} get one each",
                hint="train them one by one",
            )
        for name in edits.packed:
            held, flag = edits.holding(name)
            if any(other.split(".")[0] == name for other in full):
                raise UsageError(f"{name} is trained, so it cannot be {held}", hint=f"take it out of {flag}")
            if use_dora and name in adapted:
                problem = f"a DoRA reads the weights of the {name}, so it cannot be {held}"
                raise UsageError(problem, hint=f"leave --use-dora or --network dora out, or take {name} out of {flag}")
        pipe.requires_grad_(False).eval()
        if preset_lora_path is not None:
            fuse_lora(pipe, Path(preset_lora_path), preset_lora_model or pipe.family.denoisers[0].name)
        for path, scale in loras:
            fuse_lora(pipe, Path(path), None, scale)
        self.trained = [
            self._train_whole(pipe, name, full, cast=name not in divided)
            for name in dict.fromkeys(n.split(".")[0] for n in full)
        ]
        denoisers = [denoiser.name for denoiser in pipe.parts.denoisers]
        for number, name in enumerate(adapted):
            published = list(pipe.family.lora_targets) if name in denoisers else [AUTO]
            targets = split_names(lora_target_modules) or published
            model = pipe.component(name)
            add_network(model, targets, settings, derive_seed(seed, name) if number else seed)
            if lora_checkpoint is not None:
                original, unnamed = pipe.family.original_names, unnamed_layers(name, denoisers)
                continue_lora(model, name, Path(lora_checkpoint), original, unnamed, pipe.family)
            about = {**settings.described(), "target_modules": ",".join(targets)}
            self.trained.append(TrainedComponent(name, lora=True, description=about))
        if not self.trained:
            raise UsageError("nothing is trainable", hint="give lora_base_model or trainable_models")
        edits.pack(pipe, packed_on or pipe.device)
        pipe.scheduler.set_timesteps(TRAINING_LEVELS, training=True)

    @staticmethod
    def _train_whole(pipe: BasePipeline, component: str, names: list[str], *, cast: bool) -> TrainedComponent:
        model = pipe.component(component)
        patterns = [name.partition(".")[2] for name in names if name.partition(".")[0] == component]
        found = {name: m for each in patterns for name, m in find_modules(model, component, each).items()}
        for module in found.values():
            module.requires_grad_(True).train()
            for tensor in (*(module.parameters() if cast else ()), *module.buffers()):
                if tensor.is_floating_point() and tensor.dtype != torch.float32:
                    tensor.data = tensor.data.float()
        if cast and "" not in found:
            cast_weights(model, pipe.torch_dtype, frozen_only=True)
        about = {} if "" in found else {"trained_parts": ",".join(found)}
        return TrainedComponent(component, lora=False, parts=tuple(found), description=about)

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield (name, parameter) for every trained parameter."""
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    def trainable_modules(self) -> list[nn.Parameter]:
        """Return the parameters for the optimizer."""
        return [parameter for _, parameter in self.trainable_parameters()]

    def export_trained(self, remove_prefix: str | None = None) -> dict[str, dict[str, Tensor]]:
        """Return the trained weights by component, ready to be saved.

        A LoRA has the key names of dsctl_core.lora.formats. Fully trained weights have their names in this module
        without `remove_prefix` (None: without the component's own prefix, which gives the published names).
        """
        exported = {}
        for component in self.trained:
            model = self.pipe.component(component.name)
            if component.lora:
                denoisers = [denoiser.name for denoiser in self.pipe.parts.denoisers]
                unnamed = unnamed_layers(component.name, denoisers)
                original = self.pipe.family.original_names
                exported[component.name] = export_lora(model, component.name, unnamed, original)
                continue
            own = f"pipe.{component.name}."
            prefix = own if remove_prefix is None else remove_prefix
            exported[component.name] = {
                f"{own}{name}".removeprefix(prefix): tensor.detach()
                for name, tensor in _trained_state(model, component)
            }
        return exported

    def count_parameters(self) -> dict[str, int]:
        """Return the number of trained parameters and of all parameters."""
        sizes = [(p.numel(), p.requires_grad) for p in self.parameters()]
        return {
            "trained": sum(n for n, on in sizes if on),
            "all": sum(n for n, _ in sizes) + offloaded_numbers(self) + packed_numbers(self),
        }

    def lora_layer_count(self) -> int:
        """Return the number of layers with a trained LoRA."""
        return sum(len(tuner_layers(self.pipe.component(c.name))) for c in self.trained if c.lora)

    def forward(self, data: Any) -> Tensor:
        """Compute the scalar loss of a sample or a batch; every subclass implements it."""
        raise NotImplementedError(f"{type(self).__name__} has no forward()")


def find_modules(model: nn.Module, component: str, pattern: str) -> dict[str, nn.Module]:
    """Return the modules of `model` that match the dotted name `pattern`, by name.

    Parts of the name may have wildcards; "" is the whole model. Raises a UsageError, with the closest match if there is
    one, for a name that matches nothing with parameters.
    """
    if not pattern:
        return {"": model}
    parts = pattern.split(".")
    modules = dict(model.named_modules())
    found = {
        name: module
        for name, module in modules.items()
        if name.count(".") + 1 == len(parts) and all(map(fnmatchcase, name.split("."), parts))
    }
    if not found:
        raise unknown_name(f"module of {component}", pattern, list(modules)[1:], listing="see the model's layers")
    if not any(True for module in found.values() for _ in module.parameters()):
        raise UsageError(f"{component}.{pattern} has nothing to train", hint="name a module that has weights")
    return found


def _trained_state(model: nn.Module, component: TrainedComponent) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that training may have changed: trained parameters, and the buffers of their modules.

    A parameter that two modules share is yielded once.
    """
    yield from ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    heads = tuple(f"{part}." if part else "" for part in component.parts)
    kept = model.state_dict(keep_vars=True)
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in kept and name.startswith(heads))


def float_dtype(mixed_precision: str) -> torch.dtype:
    """Return the dtype of frozen weights for a mixed-precision setting."""
    return {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[mixed_precision]
