"""What `dsctl download` and `dsctl upload` do, from the options to the files."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families import families, find_preset
from dsctl_core.family import Family, Preset
from dsctl_core.files.safetensors import safetensors_header
from dsctl_core.hub.fetch import fetch
from dsctl_core.hub.remote import RemoteFile, check_repo_id, companions, filtered, open_hub, select
from dsctl_core.hub.settings import download_source, model_base_path, skip_download
from dsctl_core.hub.upload import files_to_upload, upload_to_hub
from dsctl_core.options.hub import DownloadOptions, UploadOptions
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
    """What became of one thing: where it is, its files with their sizes, and what came over the network."""

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


def upload(options: UploadOptions, progress: Transfers | None = None) -> dict[str, Any]:
    """Check and upload a file or a folder; return what was done, and how to try it."""
    return upload_files(options, files_to_upload(options.path), progress)


def upload_files(
    options: UploadOptions, files: list[tuple[str, Path]], progress: Transfers | None = None
) -> dict[str, Any]:
    """Upload files that were checked. Whatever has checks of its own before it is uploaded comes in here."""
    check_repo_id(options.repo)
    source = download_source(options.target)
    facts: dict[str, Any] = {
        "repo": options.repo,
        "target": source,
        "files": [name for name, _ in files],
        "bytes": sum(file.stat().st_size for _, file in files),
        "try_it": how_to_try(options.repo, source, options.revision, files),
    }
    if options.dry_run:
        return {**facts, "uploaded": False}
    if skip_download():
        raise DsctlError("DSCTL_SKIP_DOWNLOAD forbids every use of the network", hint="unset it")
    hub = open_hub(source, options.token)
    uploaded = upload_to_hub(
        hub, options.repo, files, private=options.private, revision=options.revision, progress=progress
    )
    return {"url": uploaded.url, **facts, "uploaded": True}


def how_to_try(repo: str, source: str, revision: str | None, files: list[tuple[str, Path]]) -> list[str]:
    """Return the commands with which somebody else gets and tries what is uploaded; [] when no command can."""
    names = [name for name, _ in files]
    at = "" if revision is None else f"@{revision}"
    folder = model_base_path() / f"{repo}{at.replace('/', '--')}"
    get = ["dsctl", "download", f"{repo}{at}", "--source", source]
    if "model_index.json" in names:
        return [shlex.join(get), shlex.join(["dsctl", "infer", "--model", f"./{folder}", "--prompt", "..."])]
    for name, file in files:
        about = safetensors_header(file)[0].get("__metadata__", {}) if name.endswith(".safetensors") else {}
        if about.get("kind") == "lora":
            known = {preset.name for family in families().values() for preset in family.presets}
            base = next((each for each in (about.get("base_model"),) if each in known), "MODEL")
            prompt = about.get("trigger_words", "...")
            words = ["dsctl", "infer", "--model", base, "--lora", str(folder / name), "--prompt", prompt]
            return [shlex.join(get), shlex.join(words)]
    return [shlex.join(get)]
