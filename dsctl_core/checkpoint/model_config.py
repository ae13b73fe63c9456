"""Define ModelConfig, the location of a component's weights, and download them from a hub."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.hub.settings import download_source, model_base_path, skip_download
from dsctl_core.progress import NoTransfers
from dsctl_core.readable import readable_bytes

logger = logging.getLogger(__name__)


class _Announce(NoTransfers):
    """Logs the start of a download and no further progress, because a download can happen in the middle of a job."""

    def start(self, what: str, sizes: dict[str, int]) -> None:
        """Log what is being downloaded, and how large it is."""
        size = readable_bytes(sum(sizes.values()))
        logger.warning("%s: %d files, %s; `dsctl download` shows how far it is", what, len(sizes), size)


@dataclass(frozen=True)
class ModelConfig:
    """The location of the weights of one component, or of a whole model folder.

    `path` is a file, a list of files (shards), the folder of a component, or a folder in diffusers layout; it is used
    without network access. Without `path`, `model_id` ("Qwen/Qwen-Image", or "Qwen/Qwen-Image@REVISION") and
    `origin_file_pattern` ("transformer/*.safetensors", "tokenizer/", or None for all files) specify files on the hub
    `download_source`. Files that are missing or incomplete in `local_model_path` (default: the model base path) are
    downloaded, with the configs next to the weights, unless `skip_download` is set.
    """

    path: str | Path | list[str] | list[Path] | None = None
    model_id: str | None = None
    origin_file_pattern: str | None = None
    download_source: str | None = None
    local_model_path: str | Path | None = None
    skip_download: bool | None = None
    _found: list[Path] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (self.path is None) == (self.model_id is None):
            raise UsageError("a ModelConfig takes either path or model_id", hint="give exactly one of the two")

    @classmethod
    def from_string(cls, text: str) -> ModelConfig:
        """Parse "ID:PATTERN", or a path; an existing path takes precedence."""
        if Path(text).exists():
            return cls(path=text)
        model_id, separator, pattern = text.partition(":")
        if not separator or not model_id.strip():
            raise UsageError(
                f"{text!r} is neither a path that exists nor ID:PATTERN",
                hint='write it as "OWNER/NAME:transformer/*.safetensors"',
            )
        return cls(model_id=model_id.strip(), origin_file_pattern=pattern.strip() or None)

    @property
    def repository(self) -> tuple[str, str | None]:
        """Return the id of the repository, and the pinned revision or None."""
        name, _, revision = (self.model_id or "").partition("@")
        return name, revision or None

    @property
    def folder(self) -> Path:
        """Return the local folder of the repository; each pinned revision has a folder of its own."""
        name, revision = self.repository
        base = Path(self.local_model_path) if self.local_model_path is not None else model_base_path()
        return base / (name if revision is None else f"{name}@{revision.replace('/', '--')}")

    def resolve(self) -> list[Path]:
        """Return the sorted files, or the one folder, of this location, after downloading what is missing.

        If the hub cannot be reached, the local files are used, with a warning. Raises DsctlError if nothing is found.
        """
        if self.path is not None:
            return self._given()
        if not self._found:
            self._found.extend(self._from_hub())
        return list(self._found)

    def _given(self) -> list[Path]:
        paths = [Path(p) for p in (self.path if isinstance(self.path, list) else [self.path])]  # type: ignore[arg-type]
        if not paths:
            raise DsctlError("an empty list of model files was given", hint="name at least one file")
        for path in paths:
            if not path.exists():
                raise DsctlError(f"{path} does not exist", hint="check the path of the model")
        return sorted(paths)

    def _from_hub(self) -> list[Path]:
        from dsctl_core.hub.errors import HubUnreachable

        if skip_download() if self.skip_download is None else self.skip_download:
            return self._local(None)
        try:
            self._download()
        except HubUnreachable as fault:
            found = self._local(fault)
            logger.warning("%s; using what is in %s", fault.problem, self.folder)
            return found
        return self._local(None)

    def _download(self) -> None:
        from dsctl_core.hub.fetch import fetch
        from dsctl_core.hub.open import open_hub
        from dsctl_core.hub.remote import check_repo_id, companions, select

        name, revision = self.repository
        check_repo_id(name)
        hub = open_hub(download_source(self.download_source))
        listing = hub.list_files(name, "model", revision)
        chosen = select(listing.files, self.origin_file_pattern)
        if not chosen:
            raise DsctlError(
                f"no file of {name} matches {self.origin_file_pattern!r}",
                hint=f"it has {', '.join(file.path for file in listing.files[:6])}, ...",
            )
        wanted = dict.fromkeys([*chosen, *companions(listing.files, chosen)])
        fetch(hub, name, listing.revision, list(wanted), self.folder, progress=_Announce())

    def _local(self, fault: DsctlError | None) -> list[Path]:
        """Return the local files; if there are none, raise `fault`, or else a DsctlError with the expected path."""
        name, _ = self.repository
        pattern, folder = self.origin_file_pattern or "", self.folder
        hint = (
            f"run `dsctl download {self.model_id}`, or set DSCTL_MODEL_BASE_PATH to the folder that holds {name}; "
            f"it was looked for in {folder}"
        )
        if not folder.is_dir():
            raise fault or DsctlError(f"{self.model_id} is not in {folder}", hint=hint)
        if pattern in ("", "./") or pattern.endswith("/"):
            whole = folder / pattern
            if not whole.is_dir():
                raise fault or DsctlError(f"{folder} has no folder {pattern!r}", hint=hint)
            return [whole]
        found = sorted(p for p in folder.glob(pattern) if p.is_file())
        if not found:
            raise fault or DsctlError(f"no file in {folder} matches {pattern!r}", hint=hint)
        return found
