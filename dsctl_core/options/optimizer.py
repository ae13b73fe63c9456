"""Options of the optimizer and of the learning rate schedule."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator

from dsctl_core.errors import UsageError, unknown_name
from dsctl_core.options.base import Count, Options, Text
from dsctl_core.options.effects import NO_POWER, NO_RESTARTS, NO_WARMUP, Idle
from dsctl_core.options.messages import Takes


@dataclass(frozen=True)
class KnownOptimizer:
    """An optimizer that has a short name.

    `arguments` are set with the short name, where its own defaults would not suit. Without `--learning-rate` the rate
    is `rate`, or that of AdamW times `rate_scale`; with neither, one has to be given.
    """

    target: str  # package.Class
    install: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    rate: float | None = None
    rate_scale: float | None = None


OPTIMIZERS = {
    "adamw": KnownOptimizer("torch.optim.AdamW", rate_scale=1.0),
    "adamw8bit": KnownOptimizer("bitsandbytes.optim.AdamW8bit", "pip install bitsandbytes", rate_scale=1.0),
    # By itself it finds its own rate; so that --learning-rate and --lr-scheduler mean what they say, it is told not to.
    "adafactor": KnownOptimizer(
        "transformers.optimization.Adafactor",
        arguments={"scale_parameter": False, "relative_step": False, "warmup_init": False},
        rate_scale=1.0,
    ),
    # It finds the rate, and multiplies it with this (arXiv:2306.06101).
    "prodigy": KnownOptimizer("prodigyopt.Prodigy", "pip install prodigyopt", rate=1.0),
    # Every element moves by the whole rate at each step: 3 to 10 times less than with AdamW (arXiv:2302.06675).
    "lion": KnownOptimizer("lion_pytorch.Lion", "pip install lion-pytorch", rate_scale=0.1),
    "sgd": KnownOptimizer("torch.optim.SGD"),
}
SchedulerName = Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "constant_with_warmup"]
OPTION_OF = {"lr": "--learning-rate", "weight_decay": "--weight-decay", "params": "--trainable-models"}
WORDS = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class Setting:
    """An argument of the optimizer: its name, and its value as it was written."""

    form: ClassVar[str] = "KEY=VALUE"

    name: str
    text: str

    @classmethod
    def parse(cls, text: Any) -> Setting:
        """Read KEY=VALUE."""
        if isinstance(text, Setting):
            return text
        if not isinstance(text, str):
            raise ValueError(f"{text!r} is no text")
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name.isidentifier() or not value:
            raise ValueError(f"{text!r} does not have the form KEY=VALUE")
        return cls(name, value)

    @property
    def value(self) -> Any:
        """The value as Python reads it, `true`, `false` and `none` in any case; what it cannot read is text."""
        if self.text.lower() in WORDS:
            return WORDS[self.text.lower()]
        try:
            return ast.literal_eval(self.text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the parser's own, for deep nesting
            return self.text

    def __str__(self) -> str:
        return f"{self.name}={self.text}"


def _between_commas(text: str) -> Iterator[str]:
    """Split at commas, but not at those inside brackets: "betas=(0.9, 0.99),eps=1e-6" has two parts."""
    depth, part = 0, ""
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            yield part
            part = ""
        else:
            part += letter
    yield part


def _one_by_one(value: Any) -> Any:
    """Take the flag repeated, a list from run.toml, or one text with several settings in it."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        return value
    return tuple(part for text in texts for part in (_between_commas(text) if isinstance(text, str) else [text]))


OneSetting = Annotated[Setting, BeforeValidator(Setting.parse), PlainSerializer(str)]
Settings = Annotated[tuple[OneSetting, ...], BeforeValidator(_one_by_one), Takes("KEY=VALUE, several with commas")]


class OptimizerOptions(Options):
    """The optimizer and its learning rate. A step is one update of the weights."""

    panel: ClassVar[str] = "Optimizer"
    idle: ClassVar[tuple[Idle, ...]] = (NO_WARMUP, NO_RESTARTS, NO_POWER)

    optimizer: Text = Field(
        "adamw", description=f"The optimizer: {', '.join(OPTIMIZERS)}, or any other as package.Class."
    )
    optimizer_args: Settings = Field(
        (), description="Arguments of the optimizer as KEY=VALUE, such as betas=(0.9,0.99),eps=1e-6. Can be repeated."
    )
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = Field(
        None, description="Learning rate. Left out: the preset's, else 1e-4 for a LoRA and 1e-5 for whole components."
    )
    weight_decay: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Weight decay, of every trained weight. Left out: the optimizer's own, 0.01 for adamw."
    )
    lr_scheduler: SchedulerName = Field("constant", description="Course of the learning rate over the run.")
    lr_warmup_steps: Annotated[float, Field(ge=0)] = Field(
        0, description="Steps until the full learning rate is reached; below 1, their share of all steps."
    )
    lr_num_cycles: Count | None = Field(
        None, description="With cosine_with_restarts: how many times the rate falls. Left out: 2."
    )
    lr_power: Annotated[float, Field(gt=0, le=10)] | None = Field(
        None, description="With polynomial: the power; 1 falls evenly, 2 fast at first. Left out: 1."
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Keep a moving average of the trained weights too, saved as step-N.ema.safetensors: 0.999."
    )

    @field_validator("optimizer")
    @classmethod
    def _a_name_or_a_class(cls, name: str) -> str:
        known = name.lower() if name.lower() in OPTIMIZERS else name
        if known not in OPTIMIZERS and not ("." in known and all(part.isidentifier() for part in known.split("."))):
            raise unknown_name(
                "optimizer", name, list(OPTIMIZERS), listing=f"known: {', '.join(OPTIMIZERS)}, and any package.Class"
            )
        return known

    @field_validator("optimizer_args")
    @classmethod
    def _each_once(cls, settings: tuple[Setting, ...]) -> tuple[Setting, ...]:
        names = [setting.name for setting in settings]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"--optimizer-args sets {name} twice", hint="set it once")
            if name in OPTION_OF:
                raise UsageError(f"--optimizer-args sets {name}", hint=f"that is {OPTION_OF[name]}")
        return settings

    @field_validator("lr_warmup_steps")
    @classmethod
    def _a_count_or_a_share(cls, steps: float) -> float:
        if steps >= 1 and steps != int(steps):
            raise UsageError(
                f"--lr-warmup-steps is {steps:g}, neither a number of steps nor a share of them",
                hint="give a whole number such as 100, or a share below 1 such as 0.05",
            )
        return steps

    def check(self) -> None:
        """Raise a UsageError for options that do not go together."""
        self._some_steps_to_warm_up_in()
        self._some_rate()

    def _some_steps_to_warm_up_in(self) -> None:
        if self.lr_scheduler == "constant_with_warmup" and not self.lr_warmup_steps:
            raise UsageError(
                "--lr-scheduler constant_with_warmup has no steps to warm up in", hint="give --lr-warmup-steps 100 too"
            )

    def _some_rate(self) -> None:
        known = OPTIMIZERS.get(self.optimizer)
        if self.learning_rate is None and (known is None or (known.rate is None and known.rate_scale is None)):
            raise UsageError(
                f"--optimizer {self.optimizer} is given without --learning-rate: there is no usual one for it",
                hint="give --learning-rate too",
            )
