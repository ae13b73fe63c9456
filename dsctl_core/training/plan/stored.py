"""Refuse what cannot be done with components whose files hold them in few bits."""

from __future__ import annotations

from collections.abc import Mapping

from dsctl_core.checkpoint.nf4 import stored_formats
from dsctl_core.errors import UsageError
from dsctl_core.families.resolve import ResolvedModel
from dsctl_core.options import TrainOptions
from dsctl_core.options.quantize import require_library
from dsctl_core.training.model.weight_edits import WeightEdits

WHOLE = "give its weights in bf16 instead, such as those in the model's own repository"


def refuse_for_stored(options: TrainOptions, resolved: ResolvedModel, edits: WeightEdits) -> dict[str, str]:
    """Return the formats that components are held in by their files, by name.

    Raises UsageError for what needs them whole: to train them, to pack them otherwise, to multiply in float8, and to
    merge a LoRA into them. Raises DsctlError without the library that makes them whole.
    """
    stored = stored_formats(resolved.family, resolved.configs_of(None))
    adapter = options.adapter
    whole = {name.split(".")[0] for name in options.training.trainable_models or ()}
    denoisers = {each.name for each in resolved.parts.denoisers}
    for name, form in stored.items():
        require_library(form)
        faults: Mapping[str, bool] = {
            "be trained whole": name in whole,
            "get a DoRA, which reads its weights": adapter.kind == "dora" and name in adapter.lora_components,
            "be packed anew": name in edits.packed,
            "have a LoRA merged into it": bool(adapter.lora) or (edits.lora is not None and edits.lora_on == name),
            "multiply in float8": options.memory.float8 and name in denoisers,
        }
        for what in (what for what, so in faults.items() if so):
            raise UsageError(f"the {name} is held in {form} by its files, so it cannot {what}", hint=WHOLE)
    return stored
