"""Find the control networks of a run, by name or by weights, and check that they fit its model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.checkpoint.load import config_of, find_component_paths
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.control.source import ControlNetSource, ControlWeights
from dsctl_core.control.use import ControlUse
from dsctl_core.errors import DsctlError, UsageError, unknown_name
from dsctl_core.families import families
from dsctl_core.families.resolve import ResolvedModel
from dsctl_core.family import ControlNet, Family
from dsctl_core.options.control import MODEL, ControlNetFile
from dsctl_core.random import derive_seed
from dsctl_core.readable import counted

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline

SUFFIX = ".safetensors"


def with_controlnets(
    resolved: ResolvedModel,
    wanted: Sequence[ControlNetFile],
    *,
    seed: int | None = None,
    trained: Collection[str] | None = None,
) -> ResolvedModel:
    """Return the model with the control networks `wanted`, called controlnet, controlnet_2, ...

    `seed` is that of the weights of new networks; without one, the name of a kind is refused: a new network changes
    nothing. With `trained`, the names of the networks that a run trains, so is that of one that is not among them.

    Raises DsctlError for a network that is unknown, of another family or of another size than the model.
    """
    if not wanted:
        return resolved
    if not resolved.family.controlnets:
        title = resolved.family.title
        raise UsageError(f"{title} has no control networks", hint=f"those that have: {_families_with_some()}")
    config = denoiser_config(resolved)
    found = [open_controlnet(each, n, resolved.family, config, seed) for n, each in enumerate(wanted, 1)]
    for each in found:
        if trained is not None and each.weights is None and each.name not in trained:
            raise _changes_nothing(each.label, resolved.family, f"train it too (--trainable-models {each.name}), or ")
    return replace(resolved, side_networks=(*resolved.side_networks, *found))


def load_controlnet(pipe: BasePipeline, text: str) -> str:
    """Load the control network `text`, NAME|FILE|FOLDER[:SCALE][@START-END], into `pipe`, and return its name.

    The inputs of the network called controlnet are `control_image` and, if it takes masks, `control_mask`.
    """
    number = 1 + sum(side.name.split("_")[0] == MODEL for side in pipe.side_networks)
    denoiser = pipe.component(pipe.parts.denoisers[0].name)
    source = open_controlnet(ControlNetFile.parse(text), number, pipe.family, denoiser.config, None)
    source.attach(pipe)
    return source.name


def painting_on_input(resolved: ResolvedModel) -> ControlNetSource | None:
    """Return a control network that paints a masked part of the input image anew, or None."""
    sources = (each for each in resolved.side_networks if isinstance(each, ControlNetSource))
    return next((each for each in sources if each.kind.masks_input), None)


def denoiser_config(resolved: ResolvedModel) -> Mapping[str, Any]:
    """Return the config of the first denoiser of a model, without its weights."""
    family, preset = resolved.family, resolved.preset
    name = family.denoisers[0].name
    if preset is not None and preset.model_id is not None:
        return family.sizes(name, preset.variant)
    places = find_component_paths(family, resolved.configs_of([name])).components
    if name not in places:
        raise DsctlError(f"--controlnet needs the {name} of {resolved.label}, which is not named", hint="name it too")
    return config_of(family, places[name])


def open_controlnet(
    wanted: ControlNetFile, number: int, family: Family, denoiser: Mapping[str, Any], seed: int | None
) -> ControlNetSource:
    """Return where the control network `wanted`, the `number`th of a run (from 1), comes from.

    `denoiser` is the config of the denoiser that it steers. See `with_controlnets` for `seed` and errors.
    """
    name = MODEL if number == 1 else f"{MODEL}_{number}"
    label = wanted.source
    path = Path(label).expanduser()
    if path.exists():
        kind, config = _kind_of(ControlWeights.at([path]), label, family)
        kind, wanted = _as_used(kind, wanted, family)
        _refuse_other_size(label, kind, config, denoiser, family)
        return ControlNetSource(name, label, kind, config, ModelConfig(path=path), _use(wanted, kind, config))
    if label.endswith(SUFFIX) or any(mark in label for mark in ("/", "\\")):
        raise DsctlError(f"--controlnet {label} does not exist", hint="check the path")
    for kind in family.controlnets:
        if label == kind.name and seed is None:
            raise _changes_nothing(label, family)
        if label == kind.name:
            assert seed is not None
            config = kind.new_config(denoiser)
            use = _use(wanted, kind, config)
            return ControlNetSource(name, label, kind, config, None, use, derive_seed(seed, name))
        for preset in kind.presets:
            if label == preset.name:
                config, sizes = (kind.new_config(each) for each in (denoiser, family.sizes(family.denoisers[0].name)))
                kind, wanted = _as_used(kind, wanted, family)
                _refuse_other_size(label, kind, sizes, denoiser, family)
                config |= preset.config
                weights = ModelConfig(model_id=preset.model_id, origin_file_pattern=preset.files)
                return ControlNetSource(name, label, kind, config, weights, _use(wanted, kind, config))
    for other in families().values():
        if label in [*_presets(other), *(kind.name for kind in other.controlnets)]:
            raise UsageError(
                f"--controlnet {label} is a control network of {other.title}, not of {family.title}",
                hint=f"{family.title} has {', '.join(_known(family))}",
            )
    raise unknown_name("control network", label, _known(family))


def _changes_nothing(label: str, family: Family, otherwise: str = "") -> UsageError:
    return UsageError(
        f"--controlnet {label} names a new control network, which changes nothing before it is trained",
        hint=f"{otherwise}name its weights: {', '.join(_presets(family)) or 'FILE.safetensors'}",
    )


def _as_used(kind: ControlNet, wanted: ControlNetFile, family: Family) -> tuple[ControlNet, ControlNetFile]:
    """Return the kind as which `wanted` uses weights of `kind`, and `wanted` without the mode that says so."""
    if wanted.mode is None or wanted.mode not in kind.uses:
        return kind, wanted
    name = kind.uses[wanted.mode]
    return next(each for each in family.controlnets if each.name == name), replace(wanted, mode=None)


def _use(wanted: ControlNetFile, kind: ControlNet, config: Mapping[str, Any]) -> ControlUse:
    """Return the use of a network; raise UsageError for a mode that it does not have, and for none where it has some.

    A mode beyond those with names is given by its number.
    """
    mode, plain = wanted.mode, ControlUse(wanted.scale, wanted.start, wanted.end)
    if not kind.modes:
        if mode is not None:
            known = f"give #{' or #'.join(kind.uses)}, or " if kind.uses else ""
            raise UsageError(
                f"--controlnet {wanted.source} has no modes, but #{mode} is given", hint=f"{known}leave #{mode} out"
            )
        return plain
    count = int(config[kind.modes_entry])
    listed = ", ".join(f"{name} ({number})" for number, name in enumerate(kind.modes[:count]))
    if mode is None:
        raise UsageError(
            f"--controlnet {wanted.source} takes several kinds of control pictures, and none is named",
            hint=f"write {wanted.source}#MODE: {listed}",
        )
    number = kind.modes.index(mode) if mode in kind.modes else int(mode) if mode.isdecimal() else count
    if number >= count:
        raise UsageError(
            f"--controlnet {wanted.source} has no mode {mode!r}: it has {counted(count, 'mode')}",
            hint=f"give one of {listed}",
        )
    return replace(plain, mode=number)


def _kind_of(weights: ControlWeights, label: str, family: Family) -> tuple[ControlNet, dict[str, Any]]:
    """Return the kind of the network in `weights`, and its config; raise DsctlError if it is none of `family`."""
    for kind in family.controlnets:
        config = weights.config_as(kind)
        if config is not None:
            return kind, config
    for other in families().values():
        if any(weights.config_as(kind) is not None for kind in other.controlnets):
            raise DsctlError(
                f"{label} is a control network of {other.title}, not of {family.title}",
                hint=f"give one of {family.title}, or another --model",
            )
    raise DsctlError(
        f"{label} is no control network of {family.title}, by the names of its tensors",
        hint=f"it has the kinds {', '.join(kind.name for kind in family.controlnets)}",
    )


def _refuse_other_size(
    label: str, kind: ControlNet, config: Mapping[str, Any], denoiser: Mapping[str, Any], family: Family
) -> None:
    wanted = kind.new_config(denoiser)
    for entry in kind.fixed:
        if config.get(entry) != wanted.get(entry):
            raise DsctlError(
                f"--controlnet {label} has {entry} {config.get(entry)}, but for this {family.title} it is "
                f"{wanted.get(entry)}",
                hint="give a control network that was trained for this model",
            )


def _presets(family: Family) -> list[str]:
    return [preset.name for kind in family.controlnets for preset in kind.presets]


def _known(family: Family) -> list[str]:
    return [*(kind.name for kind in family.controlnets), *_presets(family)]


def _families_with_some() -> str:
    return ", ".join(family.name for family in families().values() if family.controlnets) or "none"
