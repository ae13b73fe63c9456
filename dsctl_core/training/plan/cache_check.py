"""Check that a cache matches the run that trains from it, and build the command that rebuilds it if not."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsctl_core.cache.manifest import OF_TABLES, Recipe
from dsctl_core.cache.reader import CachedDataset
from dsctl_core.errors import DsctlError
from dsctl_core.families.resolve import ResolvedModel
from dsctl_core.options.data import DataOptions
from dsctl_core.options.model import SomeModelOptions
from dsctl_core.stages.split import Stages
from dsctl_core.training.model.open import controls_of, findable
from dsctl_core.training.model.weight_edits import WeightEdits, identify

SIZES = ("height", "width", "max_pixels", "bucket_resolutions")
CLIPS = ("num_frames", "fps", "short_clips", "clip_extraction")  # of models for videos
SWITCHES = ("allow_outside", "mask_from_alpha")
PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
NAMING = ("model", "model_paths", "model_id_with_origin_paths", "tokenizer_path")


class CacheMismatch(DsctlError):
    """Raised for a cache that was made with another model, dataset or settings than those of the run."""


@dataclass(frozen=True)
class CacheCheck:
    """Compares a cache with a run: with its model, if the options name one, and with its dataset options, if set."""

    cache: CachedDataset
    weights: SomeModelOptions
    data: DataOptions

    @property
    def recipe(self) -> Recipe:
        """The recipe that the cache was made with."""
        return self.cache.manifest.recipe

    def model_names(self) -> dict[str, str | None]:
        """Return the names of the run's model: those of the options, else those of the cache."""
        named = self.weights.flat_values() if self.weights.names_model else self.recipe.model
        return {name: named[name] for name in NAMING}

    def refuse_misfit(self, resolved: ResolvedModel, task: str | None) -> None:
        """Raise a CacheMismatch, with both values and the command that rebuilds the cache, if it does not match.

        `task` None skips the check of the task. Weights that the first stage used are compared if they are on the disk;
        training itself does not need them.
        """
        recipe, data = self.recipe, self.data
        if resolved.family.name != recipe.family:
            raise self._mismatch("family", recipe.family, resolved.family.name)
        if task is not None and task != recipe.task:
            raise self._mismatch("task", recipe.task, task)
        old_kinds, new_kinds = recipe.model.get("controlnet", []), controls_of(resolved)
        if new_kinds != old_kinds:
            words = [" and ".join(kinds) or "none" for kinds in (old_kinds, new_kinds)]
            raise self._mismatch("control network", *words, controlnet=new_kinds)
        for name in (*SIZES, *CLIPS):
            new = self._size(name)
            old = recipe.processing.get(name, "head" if name == "clip_extraction" else None)
            if data.given(name) and new != old:
                own = "pictures of their own size" if name in SIZES else "the model's own"
                raise self._mismatch(name, own if old is None else old, new)
        for name, old in (("data_file_keys", recipe.dataset["data_file_keys"]), ("extra_inputs", recipe.extra_inputs)):
            if data.given(name) and list(data.value_of(name)) != list(old):
                raise self._mismatch(name, ",".join(old), ",".join(data.value_of(name)))
        edits = WeightEdits.of_recipe(recipe)
        for name, old in recipe.components.items():
            try:
                new = identify(resolved, [name], edits)[name]
            except DsctlError:
                continue  # not on the disk, and not needed
            if new != old:
                raise self._mismatch(name, f"{old[:19]}...", f"{new[:19]}... ({resolved.label})")

    def refuse_other_units(self, stages: Stages, trained: Sequence[str]) -> None:
        """Raise a CacheMismatch if the run is split into stages differently from the cache."""
        recipe = self.recipe
        once = [(type(unit).__name__, unit.version) for unit in stages.split.once]
        every_step = tuple(type(unit).__name__ for unit in stages.split.every_step)
        if every_step != recipe.every_step or len(once) != len(recipe.once):
            old, new = ",".join(recipe.trainable), ",".join(trained)
            raise self._mismatch("trained components", old, new, trainable=trained)
        for (name, version), (old_name, old_version) in zip(once, recipe.once, strict=True):
            if (name, version) != (old_name, old_version):
                raise self._mismatch("unit", f"{old_name} version {old_version}", f"{name} version {version}")

    def refuse_other_precision(self, precision: str) -> None:
        """Raise a CacheMismatch if the run computes in another precision than the cache was made in."""
        old = precision_of(self.cache)
        if precision != old:
            raise self._mismatch("precision", old, precision, mixed_precision=precision)

    def rebuild_command(
        self,
        trainable: Sequence[str] | None = None,
        mixed_precision: str | None = None,
        controlnet: Sequence[str] | None = None,
    ) -> str:
        """Return the `dsctl cache` command that makes the cache match the run."""
        recipe, data = self.recipe, self.data
        values: dict[str, Any] = {**self.model_names()}
        values["model"] = findable(values["model"])
        values.update({name: recipe.dataset[name] for name in ("dataset_base_path", "dataset_metadata_path")})
        if data.given("data_file_keys") or recipe.dataset["data_file_keys"] != ["image"]:
            keys = data.data_file_keys if data.given("data_file_keys") else recipe.dataset["data_file_keys"]
            values["data_file_keys"] = ",".join(keys)
        extra = data.extra_inputs if data.given("extra_inputs") else recipe.extra_inputs
        values["extra_inputs"] = ",".join(extra) or None
        values["column"] = ",".join(recipe.dataset["column"]) or None
        values.update({name: recipe.dataset[name] for name in ("caption_prefix", "caption_suffix")})
        given = {name: self._size(name) for name in SIZES if data.given(name)}
        values.update(given or {name: recipe.processing[name] for name in SIZES})
        clips = {name: self._size(name) if data.given(name) else recipe.processing.get(name) for name in CLIPS}
        values.update({name: value for name, value in clips.items() if value not in (None, "refuse", "head")})
        values["mixed_precision"] = mixed_precision
        if trainable is not None:
            values["trainable_models"] = ",".join(trainable)
        values["template"] = recipe.model.get("template")
        values["fp8_models"] = ",".join(recipe.model["fp8_models"]) or None
        values["quantize"] = (
            ",".join(f"{name}={form}" for name, form in recipe.model.get("quantize", {}).items()) or None
        )
        values["output_path"] = self.cache.folder
        tables = [json.dumps(each["table"]) for each in recipe.dataset.get(OF_TABLES, ())]
        switches = [f"--{name.replace('_', '-')}" for name in SWITCHES if recipe.dataset.get(name)]
        flags = [(f"--{name.replace('_', '-')}", str(value)) for name, value in values.items() if value is not None]
        flags += [("--dataset", table) for table in tables]
        kinds = recipe.model.get("controlnet", []) if controlnet is None else controlnet
        flags += [("--controlnet", kind) for kind in kinds]
        return shlex.join(["dsctl", "cache", *(word for flag in flags for word in flag), *switches])

    def _size(self, name: str) -> Any:
        """Return the value in the recipe of `name`, which is one of SIZES."""
        value = self.data.value_of(name)
        return ",".join(value) if isinstance(value, tuple) else value

    def _mismatch(
        self,
        what: str,
        old: Any,
        new: Any,
        *,
        trainable: Sequence[str] | None = None,
        mixed_precision: str | None = None,
        controlnet: Sequence[str] | None = None,
    ) -> CacheMismatch:
        problem = f"{self.cache.folder} was made with the {what.replace('_', ' ')} {old}, but this run has {new}"
        command = self.rebuild_command(trainable, mixed_precision, controlnet)
        return CacheMismatch(problem, hint=f"make it anew: {command}")


def precision_of(cache: CachedDataset) -> str:
    """Return the precision that a cache was made in, as `--mixed-precision` has it."""
    return PRECISIONS[cache.manifest.recipe.dtype]
