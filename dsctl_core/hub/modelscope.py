"""ModelScope, through modelscope_hub, which resumes and verifies downloads; the package modelscope imports torch."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dsctl_core.errors import DsctlError
from dsctl_core.hub.errors import explained
from dsctl_core.hub.parts import PARTS
from dsctl_core.hub.remote import Advance, Listing, RemoteFile, RepoType
from dsctl_core.hub.targets import NOTES, safe_path
from dsctl_core.remote.modelscope import modelscope_hub

TRIES = 3


class ModelScope:
    """modelscope.cn, or the endpoint in MODELSCOPE_ENDPOINT."""

    name = "modelscope"
    file_limit = 50_000_000_000

    def __init__(self, token: str | None = None) -> None:
        library = modelscope_hub()
        from modelscope_hub.constants import DEFAULT_ENDPOINT

        self.endpoint = (os.environ.get("MODELSCOPE_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        self.api = library.HubApi(endpoint=self.endpoint, token=token)

    def list_files(self, repo_id: str, repo_type: RepoType, revision: str | None) -> Listing:
        """Return the files of a repository. For an unknown revision this hub returns an empty list: a `DsctlError`."""
        with explained(self.name, repo_id):
            entries = self.api.list_repo_files(repo_id, repo_type, revision=revision)
        files = tuple(RemoteFile(each.path, each.size, each.sha256) for each in entries if each.type == "blob")
        if not files:
            suffix = f"@{revision}" if revision else ""
            raise DsctlError(
                f"{repo_id}{suffix} has no files on ModelScope",
                hint="check the name and the revision (`master` is usual)",
            )
        return Listing(revision or "master", files)

    def fetch(
        self,
        repo_id: str,
        repo_type: RepoType,
        revision: str,
        files: Sequence[RemoteFile],
        folder: Path,
        *,
        max_workers: int,
        advance: Advance,
        done: Callable[[RemoteFile], None],
    ) -> None:
        """Download files, several at once; see `Hub.fetch`.

        The library writes beside each target, and over what is there. So it writes into a folder of our own, and whole
        files are moved from there.
        """
        entries = [{"Path": file.path, "Size": file.size, "Sha256": file.sha256, "Type": "blob"} for file in files]
        staging = folder / NOTES / PARTS / self.name
        by_path = {file.path: file for file in files}
        lock = threading.Lock()

        class Report:
            def __init__(self, filename: str, file_size: int) -> None:
                self.filename = filename

            def update(self, size: int) -> None:
                with lock:
                    advance(self.filename, size)

            def end(self) -> None:
                return None

        def move(file: RemoteFile) -> None:
            target = folder / safe_path(file.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            (staging / file.path).replace(target)
            done(file)

        with explained(self.name, repo_id, folder):
            try:
                self.api.download_repo(
                    repo_id,
                    repo_type,
                    revision=revision,
                    local_dir=staging,
                    max_workers=max_workers,
                    progress_callbacks=[Report],
                    file_list=entries,
                )
            except Exception as error:
                failed: Any = getattr(error, "failed_files", None) or by_path
                for path in set(by_path) - set(failed):
                    move(by_path[path])
                raise
            for file in files:
                move(file)

    def upload(
        self,
        repo_id: str,
        files: Sequence[tuple[str, Path]],
        *,
        private: bool,
        revision: str | None,
        message: str,
        advance: Advance,
    ) -> None:
        """Upload files one by one; see `Hub.upload`. The library would create the repository as public, always."""
        from modelscope_hub.errors import AlreadyExistsError

        with explained(self.name, repo_id):
            with contextlib.suppress(AlreadyExistsError):
                self.api.create_repo(repo_id, "model", visibility="private" if private else "public")
            for path, local in files:
                self._upload_one(repo_id, path, local, revision, message)
                advance(path, local.stat().st_size)

    def _upload_one(self, repo_id: str, path: str, local: Path, revision: str | None, message: str) -> None:
        """Upload one file, with up to three attempts while the hub has server errors."""
        for attempt in range(TRIES):
            try:
                # The library prints to stdout.
                with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
                    self.api.upload_file(
                        repo_id, "model", local, path, commit_message=message, revision=revision, disable_tqdm=True
                    )
            except Exception as error:
                if attempt == TRIES - 1 or not getattr(error, "retryable", False):
                    raise
                time.sleep(2**attempt)
            else:
                return

    def url(self, repo_id: str) -> str:
        """Return the URL of the repository's page."""
        return f"{self.endpoint}/models/{repo_id}"
