"""Define pipeline units, the steps that turn user inputs into inputs of the denoiser, and the runner for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from dsctl_core.errors import DsctlError

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline

Inputs = dict[str, Any]


def is_guided(cfg_scale: Any) -> bool:
    """Return whether `cfg_scale`, a number or a sequence of numbers, needs a pass with the negative prompt."""
    return any(scale != 1 for scale in (cfg_scale if isinstance(cfg_scale, list | tuple) else [cfg_scale]))


class PipelineUnit:
    """One preparation step of a pipeline, such as encoding the prompt.

    A subclass implements `process(self, pipe, a, b=1)`: the parameters after `pipe` are the inputs of the unit, and a
    parameter with a default is optional. It returns a dict whose keys must all be in `output_params`.
    `onload_model_names` are the components that the unit uses.

    With `separate_cfg` the unit runs once for the prompt and once for the negative prompt; the second run reads
    `negative_x` for an input `x` if `negative_x` is present. With `take_over` the unit receives and returns all three
    dicts (shared, posi, nega), and `reads` lists the names that it reads.

    The other attributes matter for the two stages of training:

    - `draws_each_step`: the unit draws random numbers, new ones at each step.
    - `version`: increased when the unit returns different values for the same inputs, which invalidates caches.
    - `frozen_use`: components of which the unit uses only frozen parts, even when other parts are trained.
    - `padded`: maps an output (B, T, ...) that is padded at the end of T to the output with its mask, (B, T) bool,
      which is None when nothing is padded.

    `batch_key` determines which samples can share a batch in the first stage.

    The three declarations can also be arguments of `super().__init__()` in the constructor of a subclass.
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
    none_if_absent: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        input_params: Sequence[str] | None = None,
        output_params: Sequence[str] | None = None,
        onload_model_names: Sequence[str] | None = None,
    ) -> None:
        """Read the inputs from the signature of `process`.

        Raises TypeError for a `process` that does not name its inputs, and for names that it does not have.

        Args:
            input_params: Names of the inputs, which must be the parameters of `process` after `pipe`. Then an input
                that nothing provides is None instead of an error (None: the parameters of `process`).
            output_params: Names of the outputs (None: those of the class).
            onload_model_names: Names of the components that the unit uses (None: those of the class).
        """
        for name, value in (("output_params", output_params), ("onload_model_names", onload_model_names)):
            if value is not None:
                setattr(self, name, _names(self, name, value))
        self.required, self.optional = () if not self.take_over else self.reads, {}
        if self.take_over:
            if input_params is not None:
                raise TypeError(f"{type(self).__name__} takes over all inputs: list those that it reads in `reads`")
            return
        parameters = list(inspect.signature(self.process).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD and parameter.kind is not parameter.KEYWORD_ONLY:
                raise TypeError(f"{type(self).__name__}.process must name its inputs one by one, not take *{parameter}")
        self.required = tuple(p.name for p in parameters if p.default is p.empty)
        self.optional = {p.name: p.default for p in parameters if p.default is not p.empty}
        if input_params is not None:
            self._declare_inputs(_names(self, "input_params", input_params))

    def _declare_inputs(self, names: tuple[str, ...]) -> None:
        """Make all inputs optional; raise TypeError if `names` are not the parameters of `process`."""
        for name in names:
            if name not in self.input_params:
                raise TypeError(f"{type(self).__name__} declares the input {name!r}, which process() does not take")
        for name in self.required:
            if name not in names:
                raise TypeError(f"{type(self).__name__}.process takes {name!r}, which is not in its input_params")
        self.none_if_absent = self.required
        self.optional = {name: self.optional.get(name) for name in names}
        self.required = ()

    @property
    def input_params(self) -> tuple[str, ...]:
        """The names of all inputs of the unit."""
        return (*self.required, *self.optional)

    def _no_process(self, pipe: BasePipeline) -> Inputs:
        """Raise NotImplementedError: every subclass implements `process`, with parameters of its own."""
        raise NotImplementedError(f"{type(self).__name__} has no process()")

    process: Callable[..., Any] = _no_process

    def batch_key(self, pipe: BasePipeline, shared: Inputs, posi: Inputs, nega: Inputs) -> Any:
        """Return a JSON value that must be equal for samples to share a batch.

        Samples with equal keys get the same outputs in a batch as alone. `shared`, `posi` and `nega` are the inputs of
        one sample before any unit has run; for an image among them, only the size may be known. All images of a batch
        have one size in any case; a unit that reads text returns what its text encoder needs, such as token counts.
        """
        return None


class UnitRunner:
    """Runs a unit on the inputs and adds its outputs to them."""

    def __call__(
        self, unit: PipelineUnit, pipe: BasePipeline, inputs_shared: Inputs, inputs_posi: Inputs, inputs_nega: Inputs
    ) -> tuple[Inputs, Inputs, Inputs]:
        """Run `unit` and return the three dicts with its outputs added.

        A `separate_cfg` unit runs for the negative prompt only when guidance needs it (`cfg_scale` other than 1).
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
        given = {name: available[name] for name in unit.input_params if name in available}
        return {**dict.fromkeys(unit.none_if_absent), **given}

    @staticmethod
    def _checked(unit: PipelineUnit, outputs: Inputs) -> Inputs:
        undeclared = sorted(set(outputs) - set(unit.output_params))
        if undeclared:
            raise TypeError(f"{type(unit).__name__} wrote {undeclared[0]!r}, which is not in its output_params")
        return outputs


def _names(unit: PipelineUnit, what: str, value: Sequence[str]) -> tuple[str, ...]:
    """Return a declaration as a tuple; raise TypeError for a single string, which `("vae")` is."""
    if isinstance(value, str) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"{what} of {type(unit).__name__} should be names such as ('vae',), not {value!r}")
    return tuple(value)


def _changed(before: Inputs, after: Inputs) -> set[str]:
    """Return the names of values that were added, replaced or removed."""
    missing = object()
    return {name for name in {*before, *after} if before.get(name, missing) is not after.get(name, missing)}
