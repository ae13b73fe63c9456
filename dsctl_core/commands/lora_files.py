"""Write a LoRA with its metadata, for the commands that make one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsctl_core.errors import UsageError
from dsctl_core.families import families
from dsctl_core.family import Family
from dsctl_core.lora.about import with_model_spec
from dsctl_core.lora.algebra import RankTruncation
from dsctl_core.lora.files import unnamed_layers
from dsctl_core.lora.formats import FORMATS, Layers
from dsctl_core.lora.layer import Update
from dsctl_core.lora.names import DENOISER
from dsctl_core.lora.save import save_lora
from dsctl_core.remote.files_output import files_output


@dataclass(frozen=True)
class Written:
    """The file or folder that a command wrote, and facts about it, the most important first."""

    output: Path
    facts: dict[str, Any] = field(default_factory=dict)


def save(
    output: Path,
    components: dict[str, Layers],
    about: dict[str, str],
    form: str,
    dtype: str,
    shapes: dict[str, dict[str, tuple[int, int]]],
    kept: RankTruncation | None,
    family: Family | None,
) -> Written:
    """Write a LoRA and return what was written; a UsageError where `output` does not fit the format.

    Args:
        output: a file NAME.safetensors, or a folder for a format that is one.
        components: the layers by component and name.
        about: metadata for the header, without what follows from the layers.
        form: the format, a name in FORMATS.
        dtype: the precision of the tensors, such as "bfloat16".
        shapes: (rows, columns) of the layers of the model by component; {} when no model was named.
        kept: what cutting the rank has kept, to be told; None where nothing was cut.
        family: the family of the model, None if it makes no difference to the layer names of the format.
    """
    is_folder = FORMATS[form].folder
    if is_folder == (output.suffix == ".safetensors"):
        wanted = "a folder, so its name does not end in .safetensors" if is_folder else "a file NAME.safetensors"
        raise UsageError(f"--output is {str(output)!r}, but the format {form} is {wanted}", hint="give another name")
    about = about if family is None else {**about, "family": family.name}
    every = {f"{name}.{layer}": each for name, layers in components.items() for layer, each in layers.items()}
    ranks, networks = ranks_of(every.values()), networks_of(every.values())
    noted = {**about, "kind": "lora", "network": ",".join(networks), "rank": ",".join(map(str, ranks))}
    place = files_output(output)
    place.prepare()
    title = output.stem
    known = shapes if shapes else None
    spec = with_model_spec(noted, title, every)
    original = None if family is None else family.original_names
    owner = _unnamed(about, components)
    with place.writing(output.name) as path:
        save_lora(path, components, spec, form=form, dtype=dtype, shapes=known, original=original, unnamed=owner)
    facts: dict[str, Any] = {"format": form, "network": networks, "layers": len(every), "ranks": ranks}
    if kept is not None:
        facts["kept_energy"] = kept.share
        facts["worst_kept_energy"] = kept.worst_share
        facts["worst_layer"] = kept.worst_layer
    return Written(output, facts)


def ranks_of(layers: Iterable[Update]) -> list[int | str]:
    """Return the ranks of `layers`, in order; "full" for those of whole matrices alone."""
    ranks = {layer.rank for layer in layers}
    return [*sorted(rank for rank in ranks if rank is not None), *(["full"] if None in ranks else [])]


def networks_of(layers: Iterable[Update]) -> list[str]:
    """Return the networks that `layers` are of: "lora", "lokr", "loha"; "dora" for a LoRA with magnitudes."""
    return sorted({"dora" if x.network == "lora" and x.magnitude is not None else str(x.network) for x in layers})


def _unnamed(about: dict[str, str], components: dict[str, Layers]) -> str:
    """Return the denoiser that the layers are of, where the header says so and there is no other component."""
    family = families().get(about.get("family", ""))
    denoisers = () if family is None or len(components) > 1 else family.denoiser_names()
    return unnamed_layers(about.get("component", DENOISER), denoisers)
