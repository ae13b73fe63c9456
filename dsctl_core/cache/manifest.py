"""manifest.json and index.json: what a cache was made of, which entries it has, and where their parts are."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import write_json, write_text
from dsctl_core.files.digest import digest, digest_file
from dsctl_core.files.json import read_json
from dsctl_core.version import __version__

FORMAT = 1  # goes up when files written before cannot be read any more
MANIFEST_FILE, INDEX_FILE = "manifest.json", "index.json"
AGAIN = "make the cache again with `dsctl cache`"


@dataclass(frozen=True)
class Recipe:
    """What entries are made of beside the rows: what decides whether a cache fits a run."""

    family: str
    task: str
    trainable: tuple[str, ...]
    once: tuple[tuple[str, int], ...]  # units and their versions
    every_step: tuple[str, ...]
    components: dict[str, str]  # of the first stage, with their identities
    dtype: str  # of the weights that encoded, and of what is kept
    processing: dict[str, Any]  # what becomes of pictures before they are encoded
    extra_inputs: tuple[str, ...]
    model: dict[str, Any]  # how the model was named
    dataset: dict[str, Any]  # how the dataset was named


@dataclass(frozen=True)
class Entry:
    """One sample: the row it was made from, its address, its plain values, and the keys of its parts."""

    row: int
    key: str
    values: dict[str, Any]
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """All that manifest.json says."""

    recipe: Recipe
    counts: dict[str, int]
    bytes: dict[str, int]
    shards: dict[str, int]  # name -> size in bytes
    index: str  # SHA-256 of index.json
    skipped: tuple[dict[str, Any], ...] = ()
    format: int = FORMAT
    dsctl_version: str = field(default=__version__)


def write_manifest(
    cache: Path,
    recipe: Recipe,
    entries: list[Entry],
    places: dict[str, str],
    shards: dict[str, int],
    tensor_bytes: int,
    skipped: list[dict[str, Any]],
) -> Manifest:
    """Write index.json, then manifest.json, each atomically. `places` says which shard has which part."""
    used = {key: places[key] for entry in entries for key in entry.parts}
    index = {"entries": [asdict(entry) for entry in entries], "parts": dict(sorted(used.items()))}
    write_text(cache / INDEX_FILE, json.dumps(index, separators=(",", ":")) + "\n")
    counts = {"entries": len(entries), "parts": len(used), "shards": len(shards), "skipped": len(skipped)}
    sizes = {"tensors": tensor_bytes, "shards": sum(shards.values())}
    manifest = Manifest(recipe, counts, sizes, shards, digest_file(cache / INDEX_FILE), tuple(skipped))
    content = json.loads(json.dumps(asdict(manifest)))
    write_json(cache / MANIFEST_FILE, {**content, "checksum": digest(content)})
    return manifest


def is_cache(folder: Path) -> bool:
    """Return whether `folder` is, or is becoming, a cache."""
    return (folder / MANIFEST_FILE).is_file() or (folder / "shards").is_dir()


def read_manifest(cache: Path) -> Manifest:
    """Read manifest.json; one that is absent, changed or of another format is a DsctlError naming it."""
    path = cache / MANIFEST_FILE
    if not path.is_file():
        if (cache / "shards").is_dir():
            raise DsctlError(f"the cache in {cache} is not finished", hint="run the same `dsctl cache` command again")
        problem = (
            f"{cache} is no cache: it has no {MANIFEST_FILE}"
            if cache.is_dir()
            else f"{cache} does not exist or is a file"
        )
        raise DsctlError(problem, hint="give the --output-path of a `dsctl cache` command")
    content = read_json(path)
    if content.get("format") != FORMAT:
        raise DsctlError(
            f"{path} has the format {content.get('format')!r} (written by dsctl {content.get('dsctl_version')}), "
            f"but dsctl {__version__} reads format {FORMAT}",
            hint=AGAIN,
        )
    checksum = content.pop("checksum", None)
    if digest(content) != checksum:
        raise DsctlError(
            f"{path} is damaged or was changed: its checksum does not fit (written by dsctl "
            f"{content.get('dsctl_version')}, this is {__version__})",
            hint=AGAIN,
        )
    recipe: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in content.pop("recipe").items()}
    recipe["once"] = tuple((name, version) for name, version in recipe["once"])
    return Manifest(Recipe(**recipe), **{**content, "skipped": tuple(content["skipped"])})


def read_index(cache: Path, manifest: Manifest) -> tuple[list[Entry], dict[str, str]]:
    """Return the entries, and the shard of each part; an index that is not the manifest's own is a DsctlError."""
    path = cache / INDEX_FILE
    if not path.is_file():
        raise DsctlError(f"{path} is missing", hint="copy it back, or run the same `dsctl cache` command again")
    if digest_file(path) != manifest.index:
        raise DsctlError(
            f"{path} is damaged, or does not belong to {MANIFEST_FILE}", hint="run the same `dsctl cache` command again"
        )
    content = read_json(path)
    entries = [Entry(e["row"], e["key"], e["values"], tuple(e["parts"])) for e in content["entries"]]
    return entries, content["parts"]
