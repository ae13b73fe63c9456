"""The two stages of training: which units run once for each sample, which at every step, and what passes between them.

Nothing here is written for a family: it all follows from what units, `model_fn` and the loss say that they read.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dsctl_core.pipeline import DENOISER_ARGUMENT
from dsctl_core.units import Inputs, PipelineUnit

if TYPE_CHECKING:
    from dsctl_core.losses import Loss
    from dsctl_core.pipeline import BasePipeline

# What training gives a sample anew each time it is seen, unless the loss takes it from the row. Whoever reads it runs
# at every step.
PER_STEP_INPUTS = ("seed",)
# What the loss hands to `model_fn` by itself, whatever the units wrote under these names.
FROM_THE_LOSS = ("latents", "timestep")


@dataclass(frozen=True)
class Split:
    """A list of units in two: those that run once for each sample, and those that run at every step."""

    once: tuple[PipelineUnit, ...]
    every_step: tuple[PipelineUnit, ...]


def split(units: Iterable[PipelineUnit], trainable: Collection[str]) -> Split:
    """Split `units`, given in running order, for training the components named in `trainable`.

    A unit runs at every step if it uses what is trained of a component, or draws anew at each step, or reads something
    written this step, or overwrites something that a unit of every step before it read or wrote. All others can be
    moved before those of every step without changing what anybody reads, so they run once.
    """
    trained = {name.split(".")[0] for name in trainable}
    once, every_step = [], []
    fresh, read = set(PER_STEP_INPUTS), set(PER_STEP_INPUTS)
    for unit in units:
        reads, writes = read_by(unit), set(unit.output_params)
        own = unit.draws_each_step or trained & (set(unit.onload_model_names) - set(unit.frozen_use))
        if own or reads & fresh or writes & (fresh | read):
            every_step.append(unit)
            fresh |= writes
            read |= reads
        else:
            once.append(unit)
    return Split(tuple(once), tuple(every_step))


def read_by(unit: PipelineUnit) -> set[str]:
    """Return every name that running `unit` may look at."""
    names = set(unit.input_params)
    if unit.separate_cfg:
        names |= {f"negative_{name}" for name in names} | {"cfg_scale"}
    return names


@dataclass(frozen=True)
class EncodeGroup:
    """Once units that work on one another's outputs, and on nobody else's: they can run apart from the rest.

    `reads` are all names that they look at, `keeps` those of what they write that the second stage needs, and `absent`
    the optional components that the model does not have.
    """

    units: tuple[PipelineUnit, ...]
    reads: frozenset[str]
    keeps: frozenset[str]
    absent: frozenset[str] = frozenset()

    @property
    def components(self) -> tuple[str, ...]:
        """The components that the group needs."""
        named = dict.fromkeys(name for unit in self.units for name in unit.onload_model_names)
        return tuple(name for name in named if name not in self.absent)


@dataclass(frozen=True)
class Stages:
    """The two stages of a task; `needs` are the outputs of the first stage that the second one reads.

    `idle` are the denoisers that training runs in neither stage, because another one is trained.
    """

    split: Split
    needs: frozenset[str]
    groups: tuple[EncodeGroup, ...]
    second_components: tuple[str, ...]
    idle: frozenset[str] = frozenset()

    @property
    def checks(self) -> tuple[PipelineUnit, ...]:
        """Return the once units that only check their inputs; they are in no group."""
        return tuple(unit for unit in self.split.once if not unit.output_params and not unit.onload_model_names)

    @property
    def raw(self) -> frozenset[str]:
        """Return the inputs that the second stage takes from the row, because no once unit writes them."""
        return self.needs - {name for group in self.groups for name in group.keeps}

    @property
    def first_components(self) -> tuple[str, ...]:
        """The components that the first stage loads."""
        return tuple(dict.fromkeys(name for group in self.groups for name in group.components))


def plan_stages(pipe: BasePipeline, loss: Loss, trainable: Collection[str]) -> Stages:
    """Divide the training of `trainable` on `pipe` with `loss` into its two stages."""
    parts = split(pipe.units, trainable)
    needs = read_by_loss(pipe, loss)
    for unit in parts.every_step:
        needs |= read_by(unit)
    needs -= set(PER_STEP_INPUTS) - set(loss.requires)
    idle = idle_denoisers(pipe, loss, trainable)
    named = [*pipe.in_iteration_models, *(name.split(".")[0] for name in trainable)]
    named += [name for unit in parts.every_step for name in pipe.models_of(unit)]
    named += [side_network.name for side_network in pipe.side_networks if side_network.control is not None]
    order = list(pipe.component_names)
    second = tuple(sorted(set(named) - idle, key=order.index))
    absent = frozenset(component.name for component in pipe.family.components) - set(pipe.parts.components)
    return Stages(parts, frozenset(needs), encode_groups(parts.once, needs, absent), second, idle)


def idle_denoisers(pipe: BasePipeline, loss: Loss, trainable: Collection[str]) -> frozenset[str]:
    """Return the denoisers that training never runs: those beside a trained one, whose levels are not drawn."""
    names = {denoiser.name for denoiser in pipe.parts.denoisers}
    trained = names & {name.split(".")[0] for name in trainable}
    return frozenset(names - trained if trained and loss.draws_levels else ())


def read_by_loss(pipe: BasePipeline, loss: Loss) -> set[str]:
    """Return every name that `model_fn`, the loss and side networks at their side may look at."""
    parameters = set(inspect.signature(pipe.model_fn).parameters)
    parameters |= {name for side_network in pipe.side_networks for name in side_network.reads}
    handed = {*FROM_THE_LOSS, DENOISER_ARGUMENT, *pipe.in_iteration_models}
    return parameters - handed | set(loss.requires) | set(loss.optional)


def encode_groups(
    once: Sequence[PipelineUnit], needs: Collection[str], absent: frozenset[str] = frozenset()
) -> tuple[EncodeGroup, ...]:
    """Return the groups of the once units, without the units that nothing of `needs` depends on.

    `absent` are the optional components that the model does not have.
    """
    wanted = set(needs)
    used: list[PipelineUnit] = []
    for unit in reversed(once):
        if wanted & set(unit.output_params):
            used.insert(0, unit)
            wanted |= read_by(unit)
    groups: list[list[PipelineUnit]] = []
    for unit in used:
        touches = read_by(unit) | set(unit.output_params)
        near = [group for group in groups if any(touches & set(other.output_params) for other in group)]
        # A reader of what this unit overwrites must stay before it.
        near += [g for g in groups if g not in near and any(read_by(o) & set(unit.output_params) for o in g)]
        groups = [group for group in groups if group not in near]
        groups.append([*(other for group in near for other in group), unit])
    position = {id(unit): number for number, unit in enumerate(used)}
    found = []
    for group in sorted((sorted(g, key=lambda u: position[id(u)]) for g in groups), key=lambda g: position[id(g[0])]):
        writes = frozenset(name for unit in group for name in unit.output_params)
        reads = frozenset().union(*(read_by(unit) for unit in group))
        found.append(EncodeGroup(tuple(group), reads, writes & frozenset(needs), absent))
    return tuple(found)


def run(units: Iterable[PipelineUnit], pipe: Any, sides: Sequence[Inputs]) -> tuple[Inputs, Inputs, Inputs]:
    """Run `units` in order on (shared, posi, nega)."""
    shared, posi, nega = sides
    for unit in units:
        shared, posi, nega = pipe.unit_runner(unit, pipe, shared, posi, nega)
    return shared, posi, nega
