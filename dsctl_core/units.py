"""Pipeline units: the steps that turn what a user asks for into what the denoiser reads, and the runner for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from dsctl_core.errors import DsctlError

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline

Inputs = dict[str, Any]


def is_guided(cfg_scale: Any) -> bool:
    """Return whether a guidance scale, or one of those of several denoisers, asks for the negative prompt."""
    return any(scale != 1 for scale in (cfg_scale if isinstance(cfg_scale, list | tuple) else [cfg_scale]))


class PipelineUnit:
    """One step of a pipeline's preparation.

    A subclass writes `process(self, pipe, a, b=1)`: the parameters after `pipe` are the inputs it reads, and a
    parameter with a default is optional. It returns a dict whose names must all be in `output_params`.
    `onload_model_names` are the components it uses.

    With `separate_cfg` the unit runs once for the prompt and once for the negative prompt: the second time an input
    `x` is taken from `negative_x` where that was given. With `take_over` the unit is handed the three dicts
    (shared, posi, nega) whole and returns them; `reads` then says which names it looks at.

    For the two stages of training: a unit that draws anew at each step says `draws_each_step`. `version` goes up when
    the unit comes to give other values for the same inputs, so that what was kept of the old ones is not used.
    `frozen_use` are those of its components of which it uses nothing that is trained, even when other parts are.
    `padded` maps an output (B, T, ...) that is padded at its end along T to the output that says what of it counts,
    (B, T) bool, or None when all of it does. `alike` says which samples the first stage may put into one batch.
    """

    output_params: tuple[str, ...] = ()
    onload_model_names: tuple[str, ...] = ()
    frozen_use: tuple[str, ...] = ()
    separate_cfg: ClassVar[bool] = False
    take_over: ClassVar[bool] = False
    reads: tuple[str, ...] = ()
    draws_each_step: ClassVar[bool] = False
    version: ClassVar[int] = 1
    padded: ClassVar[Mapping[str, str]] = {}

    required: tuple[str, ...]
    optional: dict[str, Any]

    def __init__(self) -> None:
        self.required, self.optional = () if not self.take_over else self.reads, {}
        if self.take_over:
            return
        parameters = list(inspect.signature(self.process).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD and parameter.kind is not parameter.KEYWORD_ONLY:
                raise TypeError(f"{type(self).__name__}.process must name its inputs one by one, not take *{parameter}")
        self.required = tuple(p.name for p in parameters if p.default is p.empty)
        self.optional = {p.name: p.default for p in parameters if p.default is not p.empty}

    @property
    def input_params(self) -> tuple[str, ...]:
        """Names of everything the unit reads."""
        return (*self.required, *self.optional)

    def _no_process(self, pipe: BasePipeline) -> Inputs:
        """Stand in for the `process` that every unit writes for itself, with the parameters that it needs."""
        raise NotImplementedError(f"{type(self).__name__} has no process()")

    process: Callable[..., Any] = _no_process

    def batch_key(self, pipe: BasePipeline, shared: Inputs, posi: Inputs, nega: Inputs) -> Any:
        """Return what samples must have in common for a batch of them to give what each gives alone; JSON.

        The inputs are those of one sample before any unit ran; of a picture among them only the size may be known.
        Pictures are of one size in every batch, and texts are not asked for anything: that is for a unit to say.
        """
        return None


class UnitRunner:
    """Runs a unit on the inputs gathered so far and stores what it returns."""

    def __call__(
        self, unit: PipelineUnit, pipe: BasePipeline, inputs_shared: Inputs, inputs_posi: Inputs, inputs_nega: Inputs
    ) -> tuple[Inputs, Inputs, Inputs]:
        """Run `unit` and return the three dicts with its outputs added.

        The negative side of a `separate_cfg` unit runs only when guidance needs it (`cfg_scale` other than 1).
        """
        if unit.take_over:
            before = (inputs_shared, inputs_posi, inputs_nega)
            after = unit.process(pipe, *(dict(side) for side in before))
            self._checked(unit, {name: None for pair in zip(before, after, strict=True) for name in _changed(*pair)})
            return after
        if not unit.separate_cfg:
            outputs = unit.process(pipe, **self._gather(unit, inputs_shared, {}))
            return {**inputs_shared, **self._checked(unit, outputs)}, inputs_posi, inputs_nega
        outputs = unit.process(pipe, **self._gather(unit, inputs_shared, inputs_posi))
        inputs_posi = {**inputs_posi, **self._checked(unit, outputs)}
        if is_guided(inputs_shared.get("cfg_scale", 1)):
            renamed = {name.removeprefix("negative_"): value for name, value in inputs_nega.items()}
            outputs = unit.process(pipe, **self._gather(unit, inputs_shared, renamed))
            inputs_nega = {**inputs_nega, **self._checked(unit, outputs)}
        return inputs_shared, inputs_posi, inputs_nega

    @staticmethod
    def _gather(unit: PipelineUnit, shared: Inputs, own: Inputs) -> Inputs:
        available = {**shared, **own}
        missing = [name for name in unit.required if name not in available]
        if missing:
            raise DsctlError(
                f"{type(unit).__name__} needs the input {missing[0]!r}, which was not given",
                hint=f"given: {', '.join(sorted(available))}",
            )
        return {name: available[name] for name in unit.input_params if name in available}

    @staticmethod
    def _checked(unit: PipelineUnit, outputs: Inputs) -> Inputs:
        undeclared = sorted(set(outputs) - set(unit.output_params))
        if undeclared:
            raise TypeError(f"{type(unit).__name__} wrote {undeclared[0]!r}, which is not in its output_params")
        return outputs


def _changed(before: Inputs, after: Inputs) -> set[str]:
    """Return the names whose value is new, another or gone."""
    missing = object()
    return {name for name in {*before, *after} if before.get(name, missing) is not after.get(name, missing)}
