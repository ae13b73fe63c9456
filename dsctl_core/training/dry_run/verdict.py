"""Say whether what a dry run found fits into the memory of the device."""

from __future__ import annotations

from collections.abc import Sequence

from dsctl_core.readable import readable_bytes

DEVICES = {"cpu": "main memory", "cuda": "the GPU"}


def verdict(peak: int, available: int, device: str, not_on_disk: Sequence[str]) -> list[str]:
    """Return sentences: whether `peak` bytes fit into `available` bytes, and what only the published configs say."""
    place = DEVICES.get(device, device)
    word = "fits" if peak <= available else "does not fit"
    said = [f"It {word}: {readable_bytes(peak)} of the {readable_bytes(available)} of {place}."]
    if not_on_disk:
        said.append(f"Not on the disk, and known by their published configs: {', '.join(not_on_disk)}.")
    return said
