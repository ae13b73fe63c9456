"""`dsctl download`: presets, repositories and data sets from a hub, from the options to the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families import find_preset
from dsctl_core.family import Family, Preset
from dsctl_core.hub.fetch import fetch
from dsctl_core.hub.open import open_hub
from dsctl_core.hub.remote import RemoteFile, check_repo_id, companions, filtered, select
from dsctl_core.hub.settings import download_source, model_base_path, skip_download
from dsctl_core.options.hub import DownloadOptions
from dsctl_core.progress import NoTransfers, Transfers

PIPELINE_FILES = ("model_index.json", "scheduler/")  # what makes downloaded components a model folder


@dataclass(frozen=True)
class Wanted:
    """One thing to download: a repository, and which of its files."""

    what: str
    repo_id: str
    revision: str | None
    patterns: tuple[str | None, ...]
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Downloaded:
    """The result of one download: its location, its files with their sizes, and the number of bytes transferred."""

    what: str
    folder: Path
    files: dict[str, int] = field(default_factory=dict)
    new_files: int = 0
    new_bytes: int = 0


def download(options: DownloadOptions, progress: Transfers | None = None) -> list[Downloaded]:
    """Get everything that `options` name, or with `list` only look at what there is."""
    if skip_download():
        raise DsctlError("DSCTL_SKIP_DOWNLOAD forbids every download", hint="unset it")
    shown = progress or NoTransfers()
    parsed = [wanted for what in options.what for wanted in _parsed(what, options)]
    return [_one(wanted, options, shown) for wanted in parsed]


def _parsed(what: str, options: DownloadOptions) -> Sequence[Wanted | Downloaded]:
    """Return what a word of the command line names: of a preset, what it takes of each repository."""
    if "/" not in what:
        if options.dataset:
            raise UsageError(f"{what!r} is no dataset", hint="write it as OWNER/NAME")
        family, preset = find_preset(what)
        local = preset.local_path()
        return [Downloaded(what, local)] if local is not None else _of_preset(family, preset, options)
    name, _, pattern = what.partition(":")
    repo_id, _, revision = name.partition("@")
    if revision and options.revision is not None:
        raise UsageError(f"{what!r} has a revision, and --revision another", hint="give one of them")
    return [Wanted(what, check_repo_id(repo_id), revision or options.revision, (pattern or None,))]


def _of_preset(family: Family, preset: Preset, options: DownloadOptions) -> list[Wanted]:
    parts = {**family.component_files(preset), **family.reader_files(preset)}
    patterns: dict[str, list[str]] = {}
    for part, pattern in parts.items():
        patterns.setdefault(preset.repository(part), []).append(pattern)
    for flag, value in (("--local-dir", options.local_dir), ("--revision", options.revision)):
        if value is not None and len(patterns) > 1:
            raise UsageError(
                f"{flag} is given, but {preset.name} is in several repositories: {', '.join(patterns)}",
                hint=f"leave {flag} out, or download the repositories one by one",
            )
    wanted = []
    for number, (repository, files) in enumerate(patterns.items()):
        repo_id, _, pinned = repository.partition("@")
        optional = PIPELINE_FILES if number == 0 else ()
        wanted.append(Wanted(preset.name, repo_id, options.revision or pinned or None, tuple(files), optional))
    return wanted


def _one(wanted: Wanted | Downloaded, options: DownloadOptions, progress: Transfers) -> Downloaded:
    if isinstance(wanted, Downloaded):
        return wanted
    hub = open_hub(download_source(options.source), options.token)
    repo_type = "dataset" if options.dataset else "model"
    listing = hub.list_files(wanted.repo_id, repo_type, wanted.revision)  # type: ignore[arg-type]
    files = filtered(_chosen(wanted, listing.files), options.include, options.exclude)
    if not files:
        raise DsctlError(f"no file of {wanted.repo_id} is left by --include and --exclude", hint="see `--list`")
    sizes = {file.path: file.size for file in files}
    at = "" if wanted.revision is None else f"@{wanted.revision.replace('/', '--')}"
    base = Path("data") if options.dataset else model_base_path()
    folder = options.local_dir or base / f"{wanted.repo_id}{at}"
    if options.list:
        return Downloaded(wanted.what, folder, sizes)
    fetched = fetch(
        hub,
        wanted.repo_id,
        listing.revision,
        files,
        folder,
        repo_type=repo_type,  # type: ignore[arg-type]
        max_workers=options.max_workers,
        progress=progress,
    )
    return Downloaded(wanted.what, folder, sizes, fetched.new_files, fetched.new_bytes)


def _chosen(wanted: Wanted, files: tuple[RemoteFile, ...]) -> list[RemoteFile]:
    chosen: list[RemoteFile] = []
    for pattern in wanted.patterns:
        found = select(files, pattern)
        if not found:
            raise DsctlError(
                f"no file of {wanted.repo_id} matches {pattern!r}",
                hint=f"it has {', '.join(file.path for file in files[:6])}, ...",
            )
        chosen += found
    chosen += companions(files, chosen)
    chosen += [file for pattern in wanted.optional for file in select(files, pattern)]
    return list(dict.fromkeys(chosen))
