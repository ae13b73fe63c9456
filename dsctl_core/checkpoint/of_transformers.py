"""Do for weights that are read here what transformers does while it loads: rename, tie, set how text is generated."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def is_of_transformers(model: nn.Module) -> bool:
    """Return whether the class of `model` is one of transformers."""
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)


def names_in(model: Any, names: Sequence[str]) -> dict[str, str]:
    """Return what `model` calls the tensors that are called `names` in its files, by these names.

    What the model does not have keeps its name. Classes of diffusers have the names of their files. Tensors that
    transformers would join or divide keep theirs too, and so are told as missing: no text encoder here has any.
    """
    if not names or not is_of_transformers(model):
        return {name: name for name in names}
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    known = model.state_dict()
    renamings: Any = [each for each in get_model_conversion_mapping(model) if isinstance(each, WeightRenaming)]
    ways: tuple[Any, ...] = (renamings, [])  # as in transformers: a name that the model has is kept, but for a prefix
    found = {}
    for name in names:
        tries = (rename_source_key(name, way, [], model.base_model_prefix, known)[0] for way in ways)
        found[name] = next((each for each in tries if each in known), name)
    return found


def absent_by_design(model: Any, missing: Collection[str], unexpected: Collection[str]) -> tuple[set[str], set[str]]:
    """Return those of the `missing` names of a model, and of the `unexpected` ones in its files, that are no fault.

    Missing may be one of two weights that are the same; the class says what else its files may lack or have beyond.
    """
    if not is_of_transformers(model):
        return set(), set()
    pairs = model.all_tied_weights_keys.items()
    twice = {name for pair in pairs for name in pair if not {*pair} <= {*missing}}
    lacked, beyond = (
        {name for name in names if any(re.search(pattern, name) for pattern in patterns or ())}
        for names, patterns in (
            (missing, model._keys_to_ignore_on_load_missing),
            (unexpected, model._keys_to_ignore_on_load_unexpected),
        )
    )
    return {*missing} & (twice | lacked), beyond


def finish(model: Any, folder: Path, missing: Collection[str]) -> None:
    """Have the weights of `model` that are the same be one, of which the files in `folder` lack `missing`.

    A model that generates text does so as its generation_config.json says, if it has one.
    """
    if not is_of_transformers(model):
        return
    model.tie_weights(missing_keys=set(missing), recompute_mapping=False)
    if model.can_generate() and (folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
