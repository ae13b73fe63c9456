"""What the environment says about hubs: where models go, whether the network may be used, which hub."""

from __future__ import annotations

import os
from pathlib import Path

from dsctl_core.errors import UsageError, unknown_name

SOURCES = ("modelscope", "huggingface")
YES, NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


def _first(*names: str) -> tuple[str, str] | None:
    """Return the first of the variables that is set, with its value."""
    return next(((name, os.environ[name]) for name in names if os.environ.get(name)), None)


def model_base_path() -> Path:
    """Return the folder of downloaded models: DSCTL_MODEL_BASE_PATH, else DiffSynth's variable, else ./models."""
    found = _first("DSCTL_MODEL_BASE_PATH", "DIFFSYNTH_MODEL_BASE_PATH")
    return Path(found[1]).expanduser() if found else Path("models")


def skip_download() -> bool:
    """Return whether the network must not be used: DSCTL_SKIP_DOWNLOAD, else DiffSynth's variable."""
    found = _first("DSCTL_SKIP_DOWNLOAD", "DIFFSYNTH_SKIP_DOWNLOAD")
    if found is None:
        return False
    name, value = found
    if value.strip().lower() not in YES + NO:
        raise UsageError(f"{name} is {value!r}, which is neither yes nor no", hint=f"set {name}=1, or unset it")
    return value.strip().lower() in YES


def download_source(given: str | None = None) -> str:
    """Return the hub to use: the one given, else DSCTL_DOWNLOAD_SOURCE, else DiffSynth's variable, else modelscope."""
    if given is not None:
        name, value = "download_source", given
    else:
        found = _first("DSCTL_DOWNLOAD_SOURCE", "DIFFSYNTH_DOWNLOAD_SOURCE")
        if found is None:
            return SOURCES[0]
        name, value = found
    if value.strip().lower() not in SOURCES:
        raise unknown_name(f"hub in {name}", value, SOURCES)
    return value.strip().lower()
