"""Extract a LoRA from two checkpoints: the best low-rank approximation of their difference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsctl_core.checkpoint.identify import weight_files
from dsctl_core.checkpoint.quantized import refuse_quantized
from dsctl_core.checkpoint.stream import read_tensor, tensor_shapes
from dsctl_core.errors import DsctlError, near_miss
from dsctl_core.lora.algebra import RankTruncation, collect_kept, from_difference
from dsctl_core.lora.formats import Layers


@dataclass(frozen=True)
class Extracted:
    """The extracted layers, the share of the differences that they keep, and changed tensors that no LoRA can hold."""

    layers: Layers
    kept: RankTruncation
    left_out: list[str]


def tensors_of(path: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Return the file and the shape of each tensor, by name, of the component at `path`, a folder or a weight file."""
    files = weight_files(path) if path.is_dir() else [path]
    found = {name: (file, shape) for file in files for name, shape in tensor_shapes(file).items()}
    refuse_quantized(path, found)
    return found


def extract(
    base: Path,
    tuned: Path,
    linear: Sequence[str],
    rank: int,
    targets: Sequence[str] | None = None,
    tick: Callable[[str], None] = lambda name: None,
) -> Extracted:
    """Return the LoRA of rank `rank` that approximates the difference between the weights at `tuned` and `base`.

    A tensor that is missing in `tuned` counts as unchanged.

    Args:
        base: Folder or weight file of the original component.
        tuned: Folder or weight file of the fine-tuned component.
        linear: Names of the linear layers of the component.
        rank: Rank of each update.
        targets: Suffixes of the names of the layers to extract (None: all layers).
        tick: Called with the name of each layer when it is done.
    """
    before, after = tensors_of(base), tensors_of(tuned)
    names = chosen_layers(linear, targets)
    common = [name for name in before if name in after]
    if not common:
        raise DsctlError(
            f"{tuned} and {base} have no tensor in common, {next(iter(after), 'nothing')} is in the first",
            hint="give two checkpoints of one component",
        )
    parts, left_out = {}, []
    for name in common:
        (old_file, old_shape), (new_file, new_shape) = before[name], after[name]
        if old_shape != new_shape:
            raise DsctlError(
                f"{name} is {old_shape} in {base} and {new_shape} in {tuned}", hint="give two checkpoints of one model"
            )
        delta = read_tensor(new_file, name).float() - read_tensor(old_file, name).float()
        layer = name.removesuffix(".weight")
        if delta.any():
            if layer in names and name.endswith(".weight"):
                parts[layer] = from_difference(delta, rank)
            else:
                left_out.append(name)
        tick(name)
    if not parts:
        raise DsctlError(
            f"{tuned} does not differ from {base} in any layer that was looked at", hint="give the trained weights"
        )
    layers, kept = collect_kept(parts)
    return Extracted(layers, kept, left_out)


def chosen_layers(linear: Sequence[str], targets: Sequence[str] | None) -> set[str]:
    """Return the layers with names that end in one of `targets` (None: all).

    Raises an error for a target that matches no layer.
    """
    if targets is None:
        return set(linear)
    found = set()
    for target in targets:
        hits = {name for name in linear if name == target or name.endswith(f".{target}")}
        if not hits:
            guess = near_miss(target, sorted({name.rpartition(".")[2] for name in linear}))
            raise DsctlError(
                f"target {target!r} matches no linear layer",
                hint=f"did you mean {guess!r}?" if guess else f"layers are named like {', '.join(linear[-3:])}",
            )
        found |= hits
    return found
