"""ModelConfig: where a component's weights are, and getting them from a hub."""

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
    """Says what is being downloaded, and nothing more: this happens in the middle of something else."""

    def start(self, what: str, sizes: dict[str, int]) -> None:
        """Say it; a person who waits should know what for."""
        size = readable_bytes(sum(sizes.values()))
        logger.warning("%s: %d files, %s; `dsctl download` shows how far it is", what, len(sizes), size)


@dataclass(frozen=True)
class ModelConfig:
    """The place of one component's weights, or of a whole model folder.

    `path` is a file, a list of files (shards), a component's folder or a folder in diffusers layout; used as it is,
    without any network. Without it, `model_id` ("Qwen/Qwen-Image", or "Qwen/Qwen-Image@REVISION") and
    `origin_file_pattern` ("transformer/*.safetensors", "tokenizer/", or None for everything) name files on the hub
    `download_source`. What is missing or not whole in `local_model_path` (default: the model base path) is
    downloaded, with the configs beside the weights, unless `skip_download`.
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

    @property
    def repository(self) -> tuple[str, str | None]:
        """The repository's id and the revision that is pinned, if any."""
        name, _, revision = (self.model_id or "").partition("@")
        return name, revision or None

    @property
    def folder(self) -> Path:
        """The folder that the repository's files are in; a pinned revision has one of its own."""
        name, revision = self.repository
        base = Path(self.local_model_path) if self.local_model_path is not None else model_base_path()
        return base / (name if revision is None else f"{name}@{revision.replace('/', '--')}")

    def resolve(self) -> list[Path]:
        """Return the files, sorted, or the one folder that this names, downloaded first where that is due.

        Nothing there is a DsctlError. When the hub cannot be reached, what is on the disk is used, with a warning.
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
        """Return what is on the disk; when nothing is, raise `fault`, or say where it should be."""
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
