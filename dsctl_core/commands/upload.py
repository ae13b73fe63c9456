"""`dsctl upload`: a file or a folder to a hub, checked before and compared afterwards, and how others try it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from dsctl_core.errors import DsctlError
from dsctl_core.families import families
from dsctl_core.files.safetensors import file_metadata
from dsctl_core.hub.open import open_hub
from dsctl_core.hub.remote import check_repo_id
from dsctl_core.hub.settings import download_source, model_base_path, skip_download
from dsctl_core.hub.upload import files_to_upload, upload_to_hub
from dsctl_core.options.hub import UploadOptions
from dsctl_core.progress import Transfers


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
        about = file_metadata(file) if name.endswith(".safetensors") else {}
        if about.get("kind") == "lora":
            known = {preset.name for family in families().values() for preset in family.presets}
            base = next((each for each in (about.get("base_model"),) if each in known), "MODEL")
            prompt = about.get("trigger_words", "...")
            words = ["dsctl", "infer", "--model", base, "--lora", str(folder / name), "--prompt", prompt]
            return [shlex.join(get), shlex.join(words)]
    return [shlex.join(get)]
