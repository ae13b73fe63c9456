"""Choose the model for a first training: the largest preset for beginners whose LoRA fits the memory of the GPU."""

from __future__ import annotations

from dataclasses import dataclass

from dsctl_core.families import families
from dsctl_core.family import Family, Preset
from dsctl_core.readable import readable_bytes

# What training takes beside the weights of the denoiser: activations with gradient checkpointing, the LoRA, its
# optimizer, and what CUDA keeps for itself. An allowance, for choosing alone: `dsctl train --dry-run` reckons.
BESIDE_BYTES = 4 * 2**30
SHARE = 1.25  # of the weights, for what grows with them


@dataclass(frozen=True)
class Choice:
    """A model to train, whether its denoiser is held in fp8, and why it was chosen."""

    model: str
    fp8: bool
    why: str


def choose_model(memory: int, *, videos: bool) -> Choice | None:
    """Return the model for a GPU with `memory` bytes (0: no GPU); None if no family is for such files.

    It is the largest preset marked as a first choice that fits in bfloat16, else the smallest in fp8, else an embedded
    one, which a CPU trains.
    """
    known = [
        (family, preset)
        for family in families().values()
        for preset in family.presets
        if preset.first_choice and (family.time_division is not None) == videos
    ]
    sized = sorted(((_denoiser_bytes(*each), each[1].name) for each in known if each[1].model_id), reverse=True)
    for size, name in sized:
        if SHARE * size + BESIDE_BYTES <= memory:
            return Choice(name, False, f"the largest that fits a GPU of {readable_bytes(memory)}")
    for size, name in sized[-1:]:
        if SHARE * size / 2 + BESIDE_BYTES <= memory:
            return Choice(name, True, f"in fp8 it fits a GPU of {readable_bytes(memory)}")
    embedded = [preset.name for _, preset in known if preset.model_id is None]
    why = "no GPU was found" if memory == 0 else f"no other fits a GPU of {readable_bytes(memory)}"
    if embedded:
        return Choice(embedded[0], False, f"it trains on a CPU: {why}")
    return Choice(sized[-1][1], True, f"the smallest there is: {why}") if sized else None


def _denoiser_bytes(family: Family, preset: Preset) -> int:
    sizes = family.weight_bytes(preset) or {}
    return sizes.get(family.denoisers[0].name, 0)


def gpu_memory() -> int:
    """Return the bytes of memory of the first GPU, 0 without one. This imports torch."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else 0
