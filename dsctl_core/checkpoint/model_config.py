"""ModelConfig: where a component's weights are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dsctl_core.errors import DsctlError, UsageError


def model_base_path() -> Path:
    """Return the folder of downloaded models: DSCTL_MODEL_BASE_PATH, else DiffSynth's variable, else ./models."""
    for variable in ("DSCTL_MODEL_BASE_PATH", "DIFFSYNTH_MODEL_BASE_PATH"):
        if os.environ.get(variable):
            return Path(os.environ[variable])
    return Path("models")


@dataclass(frozen=True)
class ModelConfig:
    """The place of one component's weights, or of a whole model folder.

    `path` is a file, a list of files (shards), a component's folder or a folder in diffusers layout; used as it is.
    Without it, `model_id` ("Qwen/Qwen-Image") and `origin_file_pattern` ("transformer/*.safetensors", "tokenizer/",
    or None for everything) name files that are already in `local_model_path` (default: the model base path).
    """

    path: str | Path | list[str] | list[Path] | None = None
    model_id: str | None = None
    origin_file_pattern: str | None = None
    local_model_path: str | Path | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.model_id is None):
            raise UsageError("a ModelConfig takes either path or model_id", hint="give exactly one of the two")

    @classmethod
    def from_string(cls, text: str) -> ModelConfig:
        """Read "ID:pattern" as the command line writes it; a path of that spelling that exists wins."""
        if Path(text).exists():
            return cls(path=text)
        model_id, separator, pattern = text.partition(":")
        if not separator or not model_id.strip():
            raise UsageError(
                f"{text!r} is neither a path that exists nor ID:PATTERN",
                hint='write it as "OWNER/NAME:transformer/*.safetensors"',
            )
        return cls(model_id=model_id.strip(), origin_file_pattern=pattern.strip() or None)

    def resolve(self) -> list[Path]:
        """Return the files, sorted, or the one folder that this names; nothing there is a DsctlError."""
        if self.path is not None:
            paths = [Path(p) for p in (self.path if isinstance(self.path, list) else [self.path])]
            if not paths:
                raise DsctlError("an empty list of model files was given", hint="name at least one file")
            for path in paths:
                if not path.exists():
                    raise DsctlError(f"{path} does not exist", hint="check the path of the model")
            return sorted(paths)
        base = Path(self.local_model_path) if self.local_model_path is not None else model_base_path()
        assert self.model_id is not None
        folder = base / self.model_id
        pattern = self.origin_file_pattern or ""
        hint = (
            f"download {self.model_id} into {folder}, or set DSCTL_MODEL_BASE_PATH to the folder that holds "
            f"{self.model_id}"
        )
        if not folder.is_dir():
            raise DsctlError(f"{self.model_id} is not in {folder}", hint=hint)
        if pattern in ("", "./") or pattern.endswith("/"):
            whole = folder / pattern
            if not whole.is_dir():
                raise DsctlError(f"{folder} has no folder {pattern!r}", hint=hint)
            return [whole]
        found = sorted(p for p in folder.glob(pattern) if p.is_file())
        if not found:
            raise DsctlError(f"no file in {folder} matches {pattern!r}", hint=hint)
        return found
