"""Find the optimizer of a run by its name, check its arguments, and build it on the trained weights."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from dsctl_core.errors import DsctlError, UsageError, near_miss, unknown_name
from dsctl_core.options.optimizer import OPTIMIZERS, KnownOptimizer, OptimizerOptions
from dsctl_core.options.template import MODEL as TEMPLATE
from dsctl_core.training.optim.arguments import check_argument

if TYPE_CHECKING:
    from dsctl_core.families.resolve import ResolvedModel

LORA_RATE, FULL_RATE = 1e-4, 1e-5  # of AdamW: the learning rates that the specification recommends
OURS = ("self", "params", "lr", "weight_decay")  # parameters that --optimizer-args cannot set


@dataclass(frozen=True)
class OptimizerPlan:
    """The class of an optimizer and all its arguments except the weights."""

    kind: type[Optimizer]
    arguments: Mapping[str, Any]

    def __call__(self, parameters: Sequence[Any]) -> Optimizer:
        """Build the optimizer on `parameters`; raise a UsageError if it refuses its arguments.

        Its state has the dtype of the parameters, which is float32 whatever the dtype of the frozen weights.
        """
        arguments = dict(self.arguments)
        if self.kind is torch.optim.AdamW and not {"fused", "foreach"} & set(arguments):
            # One pass over each weight instead of a dozen; the results differ by the last bit at most.
            arguments["fused"] = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
        try:
            return self.kind(parameters, **arguments)
        except (TypeError, ValueError, AssertionError) as error:
            given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
            raise UsageError(
                f"{self.kind.__name__} refuses {given}: {error}", hint="check --optimizer-args and --learning-rate"
            ) from error

    def described(self) -> dict[str, Any]:
        """Return the class and its arguments for run.json; values that JSON cannot hold become strings."""
        plain = {n: v if isinstance(v, bool | int | float | None) else str(v) for n, v in self.arguments.items()}
        return {"class": f"{self.kind.__module__}.{self.kind.__qualname__}", **plain}


def plan_optimizer(options: OptimizerOptions, learning_rate: float) -> OptimizerPlan:
    """Find the optimizer that `options` name, and check its arguments against its signature.

    Raises DsctlError if its package is not installed, and UsageError for a class that the package lacks or that is not
    a supported optimizer, and for an argument that the class does not accept.
    """
    known = OPTIMIZERS.get(options.optimizer) or KnownOptimizer(options.optimizer)
    kind = _import_class(known)
    parameters = inspect.signature(kind).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    own = [n for n, p in parameters.items() if n not in OURS and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if "lr" not in parameters and not takes_any:
        raise UsageError(f"{kind.__name__} takes no learning rate (lr)", hint=f"choose from {', '.join(OPTIMIZERS)}")
    for setting in options.optimizer_args:
        if setting.name not in own and not takes_any:
            error = unknown_name(f"argument of {kind.__name__}", setting.name, own)
            raise UsageError(error.problem, hint=f"{_guess(setting.name, own)}it takes {', '.join(own) or 'none'}")
        check_argument(kind.__name__, parameters.get(setting.name), setting)
    arguments = {**known.arguments, **{setting.name: setting.value for setting in options.optimizer_args}}
    if options.weight_decay is not None:
        if "weight_decay" not in parameters and not takes_any:
            raise UsageError(f"{kind.__name__} has no weight decay", hint="leave --weight-decay out")
        arguments["weight_decay"] = options.weight_decay
    return OptimizerPlan(kind, {"lr": learning_rate, **arguments})


def _guess(name: str, known: list[str]) -> str:
    guess = near_miss(name, known)
    return "" if guess is None else f"did you mean {guess!r}? "


def _import_class(known: KnownOptimizer) -> type[Optimizer]:
    module_name, _, class_name = known.target.rpartition(".")
    package = module_name.partition(".")[0]
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        install = known.install or f"install the package that has {package}"
        raise DsctlError(f"the optimizer {known.target} cannot be imported: {error}", hint=install) from error
    kind = getattr(module, class_name, None)
    if kind is None:
        classes = [name for name, value in vars(module).items() if inspect.isclass(value)]
        guess = near_miss(class_name, classes)
        hint = f"did you mean {module_name}.{guess}?" if guess else "check the spelling"
        raise UsageError(f"there is no {class_name} in {module_name}", hint=hint)
    if not (inspect.isclass(kind) and issubclass(kind, Optimizer)):
        raise UsageError(f"{known.target} is no torch optimizer", hint="name a subclass of torch.optim.Optimizer")
    closure = inspect.signature(kind.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UsageError(
            f"{known.target} computes the loss several times a step (its step() needs a closure), which is not done",
            hint=f"choose from {', '.join(OPTIMIZERS)}",
        )
    return kind


def learning_rate(options: OptimizerOptions, trained_whole: Sequence[str], resolved: ResolvedModel) -> float:
    """Return the learning rate of the options, or the default; `trained_whole` are the names in --trainable-models.

    The default of most optimizers is AdamW's: that of the preset or 1e-4 for a LoRA or a side network, that of the
    family for its own part, and 1e-5 when whole components of the model are trained.
    """
    if options.learning_rate is not None:
        return options.learning_rate
    known = OPTIMIZERS[options.optimizer]
    if known.rate is not None:
        return known.rate
    beside = [TEMPLATE, *(side_network.name for side_network in resolved.side_networks)]
    whole = [name for name in trained_whole if name.split(".")[0] not in beside]
    rate = float(resolved.defaults.get("learning_rate", LORA_RATE))
    if whole:
        own = resolved.family.own_part
        rate = own.learning_rate if own is not None and all(map(own.holds, whole)) else FULL_RATE
    return rate * (known.rate_scale or 1.0)
