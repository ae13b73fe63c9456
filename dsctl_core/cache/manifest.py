"""Read and write manifest.json and index.json: the settings of a cache, its entries, and the shards of their parts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import json_text, write_text
from dsctl_core.files.digest import digest, digest_file
from dsctl_core.files.json import checked, read_json, read_verified_json, through_json
from dsctl_core.remote import anywhere
from dsctl_core.remote.address import is_remote, shown
from dsctl_core.remote.lookup import look_again
from dsctl_core.version import __version__

FORMAT = 1  # increased when older files can no longer be read
MANIFEST_FILE, INDEX_FILE = "manifest.json", "index.json"
OF_TABLES = "tables"  # in `Recipe.dataset`: of each of several datasets its table, rows and processing
OF_CLIPS = "clips"  # there, or of each table: how many clips each row of its table gives, if rows give several
REBUILD = "rebuild the cache with `dsctl cache`"


@dataclass(frozen=True)
class Recipe:
    """The settings that determine the entries, besides the rows; a run can use a cache only if they are equal."""

    family: str
    task: str
    trainable: tuple[str, ...]
    once: tuple[tuple[str, int], ...]  # the units that run once per sample, with their versions
    every_step: tuple[str, ...]  # the units that run in every step
    components: dict[str, str]  # the components of the first stage, with their identities
    dtype: str  # of the weights that encoded, and of the stored tensors
    processing: dict[str, Any]  # the preprocessing of images and videos
    extra_inputs: tuple[str, ...]
    model: dict[str, Any]  # the options that name the model
    dataset: dict[str, Any]  # the options that name the dataset, or the tables of several

    def processing_of(self, table: int) -> dict[str, Any]:
        """Return the preprocessing of the dataset of table `table` (from 0), of several; else of the one."""
        own = self.dataset.get(OF_TABLES)
        return self.processing if own is None else own[table]["processing"]


@dataclass(frozen=True)
class Entry:
    """One sample: its row in the dataset (from 0), its key, its plain values, and the keys of its parts."""

    row: int
    key: str
    values: dict[str, Any]
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    recipe: Recipe
    counts: dict[str, int]
    bytes: dict[str, int]
    shards: dict[str, int]  # name -> size in bytes
    index: str  # SHA-256 of index.json
    skipped: tuple[dict[str, Any], ...] = ()
    format: int = FORMAT
    dsctl_version: str = field(default=__version__)


Size = Annotated[int, Field(ge=0)]
ShardName = Annotated[str, Field(pattern=r"^[0-9a-f]{64}\.safetensors$")]  # so it is inside of the cache
UnitVersion = Annotated[list[Any], Field(min_length=2, max_length=2)]


class RecipeFile(TypedDict):
    """The recipe in manifest.json."""

    family: str
    task: str
    trainable: list[str]
    once: list[UnitVersion]
    every_step: list[str]
    components: dict[str, str]
    dtype: str
    processing: dict[str, Any]
    extra_inputs: list[str]
    model: dict[str, Any]
    dataset: dict[str, Any]


class ManifestFile(TypedDict):
    """The structure of manifest.json."""

    recipe: RecipeFile
    counts: dict[str, int]
    bytes: dict[str, int]
    shards: dict[ShardName, Size]
    index: str
    skipped: list[dict[str, Any]]
    format: int
    dsctl_version: str


class EntryFile(TypedDict):
    """One entry in index.json."""

    row: Size
    key: str
    values: dict[str, Any]
    parts: list[str]


class IndexFile(TypedDict):
    """The structure of index.json."""

    entries: list[EntryFile]
    parts: dict[str, ShardName]


def manifest_texts(
    recipe: Recipe,
    entries: list[Entry],
    shard_names: dict[str, str],
    shards: dict[str, int],
    tensor_bytes: int,
    skipped: list[dict[str, Any]],
) -> tuple[str, str]:
    """Return the texts of manifest.json and index.json.

    Args:
        recipe: The settings of the entries.
        entries: The entries.
        shard_names: The name of the shard of each part, by the key of the part.
        shards: The bytes of each shard, by its name.
        tensor_bytes: The total bytes of the tensors.
        skipped: The rows that were left out, with their problems.
    """
    used = {key: shard_names[key] for entry in entries for key in entry.parts}
    content = {"entries": [asdict(entry) for entry in entries], "parts": dict(sorted(used.items()))}
    index = json.dumps(content, separators=(",", ":")) + "\n"
    counts = {"entries": len(entries), "parts": len(used), "shards": len(shards), "skipped": len(skipped)}
    sizes = {"tensors": tensor_bytes, "shards": sum(shards.values())}
    manifest = Manifest(recipe, counts, sizes, shards, sha256(index.encode()).hexdigest(), tuple(skipped))
    about = through_json(asdict(manifest))
    return json_text({**about, "checksum": digest(about)}), index


def write_manifest(cache: Path, manifest: str, index: str) -> None:
    """Write index.json, then manifest.json, each atomically."""
    write_text(cache / INDEX_FILE, index)
    write_text(cache / MANIFEST_FILE, manifest)


def is_cache(folder: Path) -> bool:
    """Return whether `folder` is a cache, complete or not."""
    return (folder / MANIFEST_FILE).is_file() or (folder / "shards").is_dir()


def read_manifest(cache: Path) -> Manifest:
    """Read manifest.json; raise `DsctlError` if it is missing, was changed, or has another format."""
    path = cache / MANIFEST_FILE
    if is_remote(cache):
        look_again()
        with _local(path, "use the address of a cache that `dsctl cache` made, with all its files") as copy:
            return read_manifest_file(path, copy)
    if not path.is_file():
        if (cache / "shards").is_dir():
            raise DsctlError(f"the cache in {cache} is not complete", hint="run the same `dsctl cache` command again")
        problem = (
            f"{cache} is not a cache: it has no {MANIFEST_FILE}"
            if cache.is_dir()
            else f"{cache} does not exist or is a file"
        )
        raise DsctlError(problem, hint="use the --output-path of a `dsctl cache` command")
    return read_manifest_file(path, path)


@contextmanager
def _local(path: Path, hint: str) -> Iterator[Path]:
    """Give a local copy of a file of a cache; raise DsctlError with `hint` if there is none."""
    try:
        with anywhere.local(path) as copy:
            yield copy
    except FileNotFoundError as error:
        raise DsctlError(f"{shown(path)} does not exist", hint=hint) from error


def read_manifest_file(path: Path, copy: Path) -> Manifest:
    """Read the manifest that is at `path` from the local `copy`."""
    content = read_json(copy)
    if content.get("format") != FORMAT:
        raise DsctlError(
            f"{path} has the format {content.get('format')!r} (written by dsctl {content.get('dsctl_version')}), "
            f"but dsctl {__version__} reads format {FORMAT}",
            hint=REBUILD,
        )
    checksum = content.pop("checksum", None)
    if digest(content) != checksum:
        raise DsctlError(
            f"{path} is damaged or was changed: its checksum does not match (written by dsctl "
            f"{content.get('dsctl_version')}, this is {__version__})",
            hint=REBUILD,
        )
    found = checked(content, ManifestFile, str(path), hint=REBUILD)
    recipe = found["recipe"]
    names = checked([name for name, _ in recipe["once"]], list[str], f"{path}, the units in once", hint=REBUILD)
    versions = checked([version for _, version in recipe["once"]], list[int], f"{path}, their versions", hint=REBUILD)
    return Manifest(
        Recipe(
            recipe["family"],
            recipe["task"],
            tuple(recipe["trainable"]),
            tuple(zip(names, versions, strict=True)),
            tuple(recipe["every_step"]),
            recipe["components"],
            recipe["dtype"],
            recipe["processing"],
            tuple(recipe["extra_inputs"]),
            recipe["model"],
            recipe["dataset"],
        ),
        found["counts"],
        found["bytes"],
        found["shards"],
        found["index"],
        tuple(found["skipped"]),
        found["format"],
        found["dsctl_version"],
    )


def read_index(cache: Path, manifest: Manifest) -> tuple[list[Entry], dict[str, str]]:
    """Return the entries and the shard of each part; raise `DsctlError` if the index is not that of the manifest."""
    path = cache / INDEX_FILE
    if is_remote(cache):
        with _local(path, "copy it there again") as copy:
            return _read_index(path, copy, manifest)
    if not path.is_file():
        raise DsctlError(f"{path} is missing", hint="copy it back, or run the same `dsctl cache` command again")
    return _read_index(path, path, manifest)


def _read_index(path: Path, copy: Path, manifest: Manifest) -> tuple[list[Entry], dict[str, str]]:
    """Read the index that is at `path` from the local `copy`."""
    if digest_file(copy) != manifest.index:
        raise DsctlError(
            f"{path} is damaged, or does not belong to {MANIFEST_FILE}", hint="run the same `dsctl cache` command again"
        )
    content = read_verified_json(copy, IndexFile, hint=REBUILD)
    entries = [Entry(e["row"], e["key"], e["values"], tuple(e["parts"])) for e in content["entries"]]
    return entries, content["parts"]
