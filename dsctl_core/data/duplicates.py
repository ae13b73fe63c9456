"""Find duplicate files: equal bytes, or the same image at another size or in another format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from dsctl_core.data.inspection import FileFacts

BANDS, BAND_BITS = 4, 16  # difference hashes that differ in up to BANDS - 1 bits are equal in a whole band
MAX_HASH_DISTANCE = 4  # bits in which the difference hashes of two versions of one image may differ
MAX_COLOR_DISTANCE = 4.0  # mean absolute difference of their colors, of 255
MAX_ASPECT_RATIO_DISTANCE = 0.04  # relative difference of their aspect ratios
MAX_BAND_ENTRIES = 200  # all flat images share a band; comparing every pair would take quadratic time


def same_bytes(files: Mapping[Path, FileFacts]) -> Iterator[tuple[Path, Path]]:
    """Yield (file, the first file with the same bytes), in the order of `files`."""
    first: dict[bytes, Path] = {}
    for path, facts in files.items():
        earlier = first.setdefault(facts.digest, path)
        if earlier != path:
            yield path, earlier


def same_pictures(files: Mapping[Path, FileFacts]) -> Iterator[tuple[Path, Path]]:
    """Yield (file, an earlier file with the same image in other bytes), in the order of `files`. Videos are skipped.

    Candidates have a band (a quarter) of their difference hashes in common; `look_alike` compares them.
    """
    bands: list[dict[int, list[Path]]] = [{} for _ in range(BANDS)]
    digests: set[bytes] = set()
    for path, facts in files.items():
        if facts.is_video or facts.digest in digests:
            continue
        digests.add(facts.digest)
        keys = [facts.difference_hash >> (band * BAND_BITS) & ((1 << BAND_BITS) - 1) for band in range(BANDS)]
        candidates = dict.fromkeys(other for band, key in zip(bands, keys, strict=True) for other in band.get(key, ()))
        earlier = next((other for other in candidates if look_alike(facts, files[other])), None)
        if earlier is not None:
            yield path, earlier
            continue
        for band, key in zip(bands, keys, strict=True):
            entries = band.setdefault(key, [])
            if len(entries) < MAX_BAND_ENTRIES:
                entries.append(path)


def look_alike(one: FileFacts, other: FileFacts) -> bool:
    """Return whether two images have nearly equal difference hashes, aspect ratios and colors at 8x8 pixels."""
    if (one.difference_hash ^ other.difference_hash).bit_count() > MAX_HASH_DISTANCE:
        return False
    ratios = [width / height for width, height in (one.size, other.size)]
    if abs(ratios[0] - ratios[1]) > MAX_ASPECT_RATIO_DISTANCE * max(ratios):
        return False
    differences = [abs(a - b) for a, b in zip(list(one.colors), list(other.colors), strict=True)]
    return sum(differences) <= MAX_COLOR_DISTANCE * len(differences)
