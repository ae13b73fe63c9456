"""Choose what a run trains that names nothing to train: the part of the model that its family declares for that."""

from __future__ import annotations

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.errors import UsageError
from dsctl_core.families.resolve import resolve_model
from dsctl_core.options import TrainOptions
from dsctl_core.training.plan.cache_check import CacheCheck


def with_own_part(options: TrainOptions) -> TrainOptions:
    """Return `options`, with the own part of the model's first denoiser to train if they name nothing.

    Raises UsageError if nothing is named and the model has no such part.
    """
    if options.names_something_to_train or options.first_stage:
        return options
    names = options.weights.flat_values()
    if options.cache_folder is not None:
        cached = CachedDataset(options.cache_folder, options.data.dataset_repeat)
        names = dict(CacheCheck(cached, options.weights, options.data).model_names())
    family = None if options.templates.template is not None else resolve_model(**names).family
    if family is None or not family.own_modules:
        raise UsageError(
            "nothing to train is given",
            hint="give --lora-rank 32 for a LoRA, or --trainable-models dit for the whole dit",
        )
    training = options.training.model_copy(update={"trainable_models": family.own_modules})
    chosen = options.model_copy(update={"training": training})
    chosen.check()
    return chosen
