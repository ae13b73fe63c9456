"""Files that are the same: to the byte, or the same picture at another size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from dsctl_core.data.inspection import FileFacts

BANDS, BAND_BITS = 4, 16  # outlines that differ in up to BANDS - 1 bits agree in a whole band
FEWEST_DIFFERENCES = 4  # bits of the outline by which two versions of one picture may differ
NEAREST_LOOK = 4.0  # mean difference of their colours, of 255
NEAREST_SHAPE = 0.04  # relative difference of their shapes
MOST_IN_A_BAND = 200  # flat pictures all share a band: comparing each with each would take for ever


def same_bytes(files: Mapping[Path, FileFacts]) -> Iterator[tuple[Path, Path]]:
    """Yield (file, the first file with the same bytes), in the order of `files`."""
    first: dict[bytes, Path] = {}
    for path, facts in files.items():
        earlier = first.setdefault(facts.digest, path)
        if earlier != path:
            yield path, earlier


def same_pictures(files: Mapping[Path, FileFacts]) -> Iterator[tuple[Path, Path]]:
    """Yield (file, an earlier file that shows the same picture in other bytes), in the order of `files`.

    Candidates share a quarter of their outlines (a difference hash); that they are one picture is then seen in their
    colours at 8x8 pixels.
    """
    bands: list[dict[int, list[Path]]] = [{} for _ in range(BANDS)]
    digests: set[bytes] = set()
    for path, facts in files.items():
        if facts.is_video or facts.digest in digests:
            continue
        digests.add(facts.digest)
        keys = [facts.outline >> (band * BAND_BITS) & ((1 << BAND_BITS) - 1) for band in range(BANDS)]
        candidates = dict.fromkeys(other for band, key in zip(bands, keys, strict=True) for other in band.get(key, ()))
        earlier = next((other for other in candidates if look_alike(facts, files[other])), None)
        if earlier is not None:
            yield path, earlier
            continue
        for band, key in zip(bands, keys, strict=True):
            entries = band.setdefault(key, [])
            if len(entries) < MOST_IN_A_BAND:
                entries.append(path)


def look_alike(one: FileFacts, other: FileFacts) -> bool:
    """Return whether two pictures look the same at any size."""
    if (one.outline ^ other.outline).bit_count() > FEWEST_DIFFERENCES:
        return False
    shapes = [width / height for width, height in (one.size, other.size)]
    if abs(shapes[0] - shapes[1]) > NEAREST_SHAPE * max(shapes):
        return False
    differences = [abs(a - b) for a, b in zip(list(one.look), list(other.look), strict=True)]
    return sum(differences) <= NEAREST_LOOK * len(differences)
