"""Refuse what cannot be done with components whose files hold them in few bits."""

from __future__ import annotations

from collections.abc import Mapping

from dsctl_core.checkpoint.packed import stored_formats
from dsctl_core.errors import UsageError
from dsctl_core.families.resolve import ResolvedModel
from dsctl_core.options import TrainOptions
from dsctl_core.options.quantize import require_library
from dsctl_core.training.model.open import ModelUse

WHOLE = "give its weights in bf16 instead, such as those in the model's own repository"


def refuse_for_stored(options: TrainOptions, resolved: ResolvedModel, use: ModelUse) -> None:
    """Raise UsageError for a training that needs components whole whose files hold them in few bits.

    That is to train them, to multiply in float8, and what `refuse_edits_of_stored` refuses.
    """
    adapter = options.adapter
    whole = {name.split(".")[0] for name in options.training.trainable_models or ()}
    denoisers = {each.name for each in resolved.parts.denoisers}
    for name, form in refuse_edits_of_stored(resolved, use).items():
        faults: Mapping[str, bool] = {
            "be trained whole": name in whole,
            "get a DoRA, which reads its weights": adapter.kind == "dora" and name in adapter.lora_components,
            "multiply in float8": options.memory.float8 and name in denoisers,
        }
        _refuse(name, form, faults)


def refuse_edits_of_stored(resolved: ResolvedModel, use: ModelUse) -> dict[str, str]:
    """Return the formats that components are held in by their files, by name.

    Raises UsageError for components that are to be packed otherwise, or to have a LoRA merged into them. Raises
    DsctlError without the library that makes them whole.
    """
    stored, edits = stored_formats(resolved.family, resolved.configs_of(None)), use.edits
    merged = use.changed_by_loras(resolved.family) if stored else set()
    for name, form in stored.items():
        require_library(form)
        faults: Mapping[str, bool] = {
            "be packed anew": name in edits.packed,
            "have a LoRA merged into it": name in merged or (edits.lora is not None and edits.lora_on == name),
        }
        _refuse(name, form, faults)
    return stored


def _refuse(name: str, form: str, faults: Mapping[str, bool]) -> None:
    for what in (what for what, so in faults.items() if so):
        raise UsageError(f"the {name} is held in {form} by its files, so it cannot {what}", hint=WHOLE)
