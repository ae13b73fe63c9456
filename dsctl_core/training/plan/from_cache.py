"""Opening a cache for training: which model it is for, and that it fits this run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsctl_core.cache.manifest import Recipe
from dsctl_core.cache.reader import CachedDataset
from dsctl_core.errors import DsctlError
from dsctl_core.families.resolve import ResolvedModel, resolve_model
from dsctl_core.options import TrainOptions
from dsctl_core.options.template import TemplateSource
from dsctl_core.training.plan.caching import WeightEdits, findable, identify, with_template

SIZES = ("height", "width", "max_pixels", "bucket_resolutions")
NAMING = ("model", "model_paths", "model_id_with_origin_paths", "tokenizer_path")


class CacheMismatch(DsctlError):
    """A cache was made of something else than the run is about."""


def resolve_cached(options: TrainOptions, recipe: Recipe) -> ResolvedModel:
    """Find the model and the template that the options name, else those that the cache was made with."""
    named = {name: getattr(options, name) for name in NAMING} if options.names_model else recipe.model
    resolved = resolve_model(**{name: named[name] for name in NAMING})
    made_with = recipe.model.get("template")
    source = options.template or (None if made_with is None else TemplateSource.parse(made_with))
    return with_template(resolved, options, source)


def refuse_misfit(dataset: CachedDataset, options: TrainOptions, resolved: ResolvedModel) -> None:
    """Raise a CacheMismatch, with both values and the command that makes the cache anew, where it does not fit.

    Weights that the first stage used are compared where they are at hand: training itself needs none of them.
    """
    recipe, folder = dataset.manifest.recipe, dataset.folder
    if resolved.family.name != recipe.family:
        raise _mismatch(folder, options, recipe, "family", recipe.family, resolved.family.name)
    if options.given("task") and options.loss_task != recipe.task:
        raise _mismatch(folder, options, recipe, "task", recipe.task, options.loss_task)
    for name in SIZES:
        new = size_of(options, name)
        if options.given(name) and new != recipe.processing[name]:
            old = "pictures of their own size" if recipe.processing[name] is None else recipe.processing[name]
            raise _mismatch(folder, options, recipe, name, old, new)
    for name, old in (("data_file_keys", recipe.dataset["data_file_keys"]), ("extra_inputs", recipe.extra_inputs)):
        if options.given(name) and list(getattr(options, name)) != list(old):
            raise _mismatch(folder, options, recipe, name, ",".join(old), ",".join(getattr(options, name)))
    model = recipe.model
    lora = model["preset_lora_path"]
    altered = WeightEdits(tuple(model["fp8_models"]), Path(lora) if lora else None, model["preset_lora_model"])
    for name, old in recipe.components.items():
        try:
            new = identify(resolved, [name], altered)[name]
        except DsctlError:
            continue  # not at hand, and not needed
        if new != old:
            raise _mismatch(folder, options, recipe, name, f"{old[:19]}...", f"{new[:19]}... ({resolved.label})")


def size_of(options: TrainOptions, name: str) -> Any:
    """Return one of SIZES as a recipe says it."""
    value = getattr(options, name)
    return ",".join(value) if isinstance(value, tuple) else value


def refuse_other_units(
    dataset: CachedDataset,
    options: TrainOptions,
    once: Sequence[tuple[str, int]],
    every_step: Sequence[str],
    trained: Sequence[str],
) -> None:
    """Raise a CacheMismatch where the run divides into its stages in another way than the cache was made for."""
    recipe, folder = dataset.manifest.recipe, dataset.folder
    if tuple(every_step) != recipe.every_step or len(once) != len(recipe.once):
        old, new = ",".join(recipe.trainable), ",".join(trained)
        raise _mismatch(folder, options, recipe, "trained components", old, new, trainable=trained)
    for (name, version), (old_name, old_version) in zip(once, recipe.once, strict=True):
        if (name, version) != (old_name, old_version):
            old, new = f"{old_name} version {old_version}", f"{name} version {version}"
            raise _mismatch(folder, options, recipe, "unit", old, new)


def _mismatch(
    folder: Path,
    options: TrainOptions,
    recipe: Recipe,
    what: str,
    old: Any,
    new: Any,
    *,
    trainable: Sequence[str] | None = None,
) -> CacheMismatch:
    problem = f"{folder} was made with the {what.replace('_', ' ')} {old}, but this run has {new}"
    return CacheMismatch(problem, hint=f"make it anew: {rebuild_command(folder, options, recipe, trainable)}")


def rebuild_command(folder: Path, options: TrainOptions, recipe: Recipe, trainable: Sequence[str] | None = None) -> str:
    """Return the `dsctl cache` command that makes the cache in `folder` fit these options."""
    named = {name: getattr(options, name) for name in NAMING} if options.names_model else recipe.model
    values: dict[str, Any] = {name: named[name] for name in NAMING}
    values["model"] = findable(values["model"])
    values.update({name: recipe.dataset[name] for name in ("dataset_base_path", "dataset_metadata_path")})
    if options.given("data_file_keys") or recipe.dataset["data_file_keys"] != ["image"]:
        keys = options.data_file_keys if options.given("data_file_keys") else recipe.dataset["data_file_keys"]
        values["data_file_keys"] = ",".join(keys)
    extra = options.extra_inputs if options.given("extra_inputs") else recipe.extra_inputs
    values["extra_inputs"] = ",".join(extra) or None
    values["column"] = ",".join(recipe.dataset["column"]) or None
    values.update({name: recipe.dataset[name] for name in ("caption_prefix", "caption_suffix")})
    given = {name: size_of(options, name) for name in SIZES if options.given(name)}
    sizes = given or {name: recipe.processing[name] for name in SIZES}
    values.update(sizes)
    if trainable is not None:
        values["trainable_models"] = ",".join(trainable)
    values["template"] = recipe.model.get("template")
    values["fp8_models"] = ",".join(recipe.model["fp8_models"]) or None
    values["output_path"] = folder
    outside = ["--allow-outside"] if recipe.dataset["allow_outside"] else []
    flags = [(f"--{name.replace('_', '-')}", str(value)) for name, value in values.items() if value is not None]
    return shlex.join(["dsctl", "cache", *(word for flag in flags for word in flag), *outside])
