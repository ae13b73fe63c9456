"""Draw samples with the model in training, in the inference pipeline, on the modules that are being trained.

Training from a cache does not need the text encoders, which are large. They are loaded first, encode the prompts once,
and are freed before training begins; their outputs are kept in main memory. The decoder, and denoisers beside the
trained one, also wait in main memory and are on the device only while a picture is drawn.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dsctl_core.files.digest import digest
from dsctl_core.placement import Placement
from dsctl_core.stages.plan_rows import fingerprint
from dsctl_core.stages.sample import pick, unpick
from dsctl_core.stages.split import read_by
from dsctl_core.training.callbacks.sample_prompts import SamplePrompt
from dsctl_core.units import Inputs, PipelineUnit, UnitRunner

if TYPE_CHECKING:
    from PIL.Image import Image

    from dsctl_core.checkpoint.readers import Readers
    from dsctl_core.families.resolve import ResolvedModel
    from dsctl_core.media.clip import Clip
    from dsctl_core.pipeline import BasePipeline
    from dsctl_core.training.model.weight_edits import WeightEdits

CPU = torch.device("cpu")


class CachedUnitRunner(UnitRunner):
    """Runs the units named in `units` once for the same inputs, and keeps their outputs in main memory."""

    def __init__(self, units: Iterable[str]) -> None:
        self.units = set(units)
        self.known: dict[str, dict[str, Any]] = {}

    def __call__(
        self, unit: PipelineUnit, pipe: BasePipeline, inputs_shared: Inputs, inputs_posi: Inputs, inputs_nega: Inputs
    ) -> tuple[Inputs, Inputs, Inputs]:
        """Run `unit`, or return the outputs of an earlier run with the same inputs."""
        name, sides = type(unit).__name__, (inputs_shared, inputs_posi, inputs_nega)
        if name not in self.units:
            return super().__call__(unit, pipe, *sides)
        key = digest([name, {each: fingerprint(value) for each, value in pick(sides, read_by(unit)).items()}])
        if key not in self.known:
            written = super().__call__(unit, pipe, *sides)
            self.known[key] = _moved(pick(written, unit.output_params), CPU)
        shared, posi, nega = unpick(_moved(self.known[key], pipe.device))
        return {**inputs_shared, **shared}, {**inputs_posi, **posi}, {**inputs_nega, **nega}


def _moved(values: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in values.items()}


class GivenColumns(PipelineUnit):
    """Passes the columns of a sample to the units of side networks, as a batch of one."""

    def __init__(self, columns: Iterable[str]) -> None:
        self.output_params = tuple(columns)
        self.values: Mapping[str, Any] = {}
        super().__init__()

    def process(self, pipe: BasePipeline) -> Inputs:
        """Return the columns of the sample."""
        return {name: [value] for name, value in self.values.items()}

    @classmethod
    def first_in(cls, pipe: BasePipeline) -> GivenColumns:
        """Insert the unit as the first of `pipe` and return it."""
        given = cls(name for side_network in pipe.side_networks for name in side_network.columns)
        pipe.units = [given, *pipe.units]
        return given


class SamplePipeline:
    """Draws with a model in training. `models` and `readers` are the components that training does not load."""

    def __init__(self, runner: UnitRunner, models: dict[str, nn.Module], readers: Readers | None) -> None:
        self.runner, self.models, self.readers = runner, models, readers
        self.pipe: Any = None
        self.given = GivenColumns(())

    def draw(
        self, trained: BasePipeline, prompt: SamplePrompt, autocast: Callable[[], AbstractContextManager[None]]
    ) -> Image | Clip:
        """Return the picture or clip, computed in the precision of training. The schedule of `trained` is not changed.

        Every call uses the same pipeline.
        """
        if self.pipe is None:
            self.pipe = self._around(trained, autocast)
        self.given.values = prompt.side_inputs
        try:
            return self.pipe(**prompt.inputs())
        finally:
            for model in self.models.values():
                model.to(CPU)

    def _around(self, trained: BasePipeline, autocast: Callable[[], AbstractContextManager[None]]) -> Any:
        """Return a pipeline of the modules of `trained` and of this object, with its own schedule."""
        pipe: Any = type(trained)(
            {**self.models, **trained.components},
            trained.readers if self.readers is None else trained.readers.with_others(self.readers),
            trained.scheduler.schedule,
            torch_dtype=trained.torch_dtype,
            device=trained.device,
            parts=trained.parts,
            defaults=trained.defaults,
        )
        model_fn = pipe.model_fn

        @functools.wraps(model_fn)
        def in_precision(*args: Any, **inputs: Any) -> Any:
            with autocast():
                return model_fn(*args, **inputs)

        pipe.model_fn, pipe.unit_runner = in_precision, self.runner
        pipe.placement = Placement(staying=trained.components)
        for side_network in trained.side_networks:
            units = tuple(
                _in_precision(unit, autocast) if unit.draws_each_step else unit for unit in side_network.units
            )
            pipe.attach_side_network(replace(side_network, units=units), trained.component(side_network.name))
        self.given = GivenColumns.first_in(pipe)
        return pipe


def _in_precision(unit: PipelineUnit, autocast: Callable[[], AbstractContextManager[None]]) -> PipelineUnit:
    """Return `unit` wrapped in the autocast context of training."""
    own, process = copy.copy(unit), unit.process

    def in_precision(*args: Any, **inputs: Any) -> Any:
        with autocast():
            return process(*args, **inputs)

    own.process = in_precision
    return own


def prepare_sample_pipeline(
    resolved: ResolvedModel,
    shell: BasePipeline,
    prompts: Sequence[SamplePrompt],
    loaded: Sequence[str] | None,
    edits: WeightEdits,
) -> SamplePipeline:
    """Encode `prompts` with the components that training does not load, and keep the decoder.

    `shell` is the pipeline without components, `loaded` names the components that training loads (None: all), and
    `edits` are the changes made to the weights of the others.
    """
    if loaded is None:
        return SamplePipeline(UnitRunner(), {}, None)
    readers = [unit for unit in shell.units if set(shell.models_of(unit)) - set(loaded)]
    denoisers = [denoiser.name for denoiser in shell.parts.denoisers]
    waiting = [*denoisers, *shell.decoding_models]
    named = [*(name for unit in readers for name in shell.models_of(unit)), *waiting]
    absent = [name for name in dict.fromkeys(named) if name not in loaded]
    runner = CachedUnitRunner(type(unit).__name__ for unit in readers)
    if not absent:
        return SamplePipeline(runner, {}, None)
    with torch.random.fork_rng([shell.device] if shell.device.type == "cuda" else []), torch.no_grad():
        pipe: Any = resolved.load_pipeline(
            torch_dtype=shell.torch_dtype, device=shell.device, only=absent, on_host=edits.packed
        )
        edits.apply(pipe)
        pipe.unit_runner = runner
        pipe.denoise = _stop
        # Components that training loads are not loaded here; their units run at drawing time, with the current weights.
        pipe.units = [unit for unit in pipe.units if not _changing(unit) & set(loaded)]
        given = GivenColumns.first_in(pipe)
        for prompt in prompts:
            given.values = prompt.side_inputs
            with suppress(_Read):
                pipe(**prompt.inputs())
    kept = {name: pipe.component(name).to(CPU) for name in absent if name in waiting}
    return SamplePipeline(runner, kept, pipe.readers)


def _changing(unit: PipelineUnit) -> set[str]:
    """Return the components that `unit` may use while they are trained."""
    return set(unit.onload_model_names) - set(unit.frozen_use)


class _Read(Exception):
    """Raised to end a pipeline call after its units and before denoising."""


def _stop(*args: Any, **kwargs: Any) -> None:
    raise _Read
