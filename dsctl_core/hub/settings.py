"""Read the environment variables of hubs: the folder of models, the use of the network, the default hub."""

from __future__ import annotations

import os
from pathlib import Path

from dsctl_core.errors import UsageError, unknown_name

SOURCES = ("modelscope", "huggingface")
TRUE_VALUES, FALSE_VALUES = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


def _first_set(*names: str) -> tuple[str, str] | None:
    """Return (name, value) of the first of the variables that is set."""
    return next(((name, os.environ[name]) for name in names if os.environ.get(name)), None)


def model_base_path() -> Path:
    """Return the folder of downloaded models: DSCTL_MODEL_BASE_PATH, else DiffSynth's variable, else ./models.

    Raises UsageError for a variable that is set to an empty text, which is no path.
    """
    for name in ("DSCTL_MODEL_BASE_PATH", "DIFFSYNTH_MODEL_BASE_PATH"):
        value = os.environ.get(name)
        if value == "":
            raise UsageError(f"{name} is empty", hint="set it to a folder, or unset it")
        if value is not None:
            return Path(value).expanduser()
    return Path("models")


def skip_download() -> bool:
    """Return whether the network must not be used: DSCTL_SKIP_DOWNLOAD, else DiffSynth's variable, else False."""
    variable = _first_set("DSCTL_SKIP_DOWNLOAD", "DIFFSYNTH_SKIP_DOWNLOAD")
    if variable is None:
        return False
    name, value = variable
    if value.strip().lower() not in TRUE_VALUES + FALSE_VALUES:
        raise UsageError(f"{name} is {value!r}, neither true nor false", hint=f"set {name}=1, or unset it")
    return value.strip().lower() in TRUE_VALUES


def download_source(source: str | None = None) -> str:
    """Return the hub to use: `source`, else DSCTL_DOWNLOAD_SOURCE, else DiffSynth's variable, else modelscope."""
    if source is not None:
        name, value = "download_source", source
    else:
        variable = _first_set("DSCTL_DOWNLOAD_SOURCE", "DIFFSYNTH_DOWNLOAD_SOURCE")
        if variable is None:
            return SOURCES[0]
        name, value = variable
    if value.strip().lower() not in SOURCES:
        raise unknown_name(f"hub in {name}", value, SOURCES)
    return value.strip().lower()
