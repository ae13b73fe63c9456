"""Hugging Face, through the listing and the http_get of huggingface_hub, with our own resume and checksums.

snapshot_download is not used: it restarts a file after every interruption, does not verify checksums, and succeeds if
the hub does not answer and the folder is not empty.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from dsctl_core.hub.errors import WrongContent, explained
from dsctl_core.hub.parts import PARTS, Part, Stopped
from dsctl_core.hub.remote import Advance, Listing, RemoteFile, RepoType
from dsctl_core.hub.targets import NOTES, safe_path

TRIES = 5  # attempts in a row without a new byte
TIMEOUT = 30.0  # seconds without an answer; some requests of the library have no timeout


class HuggingFace:
    """huggingface.co, or the endpoint in HF_ENDPOINT."""

    name = "huggingface"
    file_limit = 50_000_000_000

    def __init__(self, token: str | None = None) -> None:
        import huggingface_hub
        from huggingface_hub import constants

        self.endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self.token = token
        self.api = huggingface_hub.HfApi(endpoint=self.endpoint, token=token)
        _set_default_timeout()

    def list_files(self, repo_id: str, repo_type: RepoType, revision: str | None) -> Listing:
        """Return the files of a repository at the current commit of `revision` (None: main)."""
        from huggingface_hub.hf_api import RepoFile

        suffix = f"@{revision}" if revision else ""
        with explained(self.name, f"{repo_id}{suffix}"):
            commit = _retry(lambda: self.api.repo_info(repo_id, repo_type=repo_type, revision=revision)).sha
            assert commit is not None
            tree = _retry(
                lambda: list(self.api.list_repo_tree(repo_id, recursive=True, revision=commit, repo_type=repo_type))
            )
        files = (
            RemoteFile(
                entry.path,
                entry.lfs.size if entry.lfs else entry.size,
                entry.lfs.sha256 if entry.lfs else None,
                None if entry.lfs else entry.blob_id,
            )
            for entry in tree
            if isinstance(entry, RepoFile)
        )
        return Listing(commit, tuple(files))

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
        """Download files, several at once. The first error, or Ctrl-C, stops the others at their next chunk."""
        stop = threading.Event()

        def one(file: RemoteFile) -> None:
            with explained(self.name, f"{repo_id}: {file.path}", folder):
                self._fetch_one(repo_id, repo_type, revision, file, folder, lambda n: advance(file.path, n), stop)
            done(file)

        pool = ThreadPoolExecutor(max_workers)
        try:
            jobs = [pool.submit(one, file) for file in files]
            finished, _ = wait(jobs, return_when=FIRST_EXCEPTION)
            stop.set()
            errors = [error for job in jobs if job in finished and (error := job.exception()) is not None]
            if errors:
                raise errors[0]
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def _fetch_one(
        self,
        repo_id: str,
        repo_type: RepoType,
        revision: str,
        file: RemoteFile,
        folder: Path,
        advance: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        target = folder / safe_path(file.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # The name has the checksum, so that a part is not continued with another version of the file, and a hash of
        # the path, because two files may have the same content.
        path_digest = hashlib.sha256(file.path.encode()).hexdigest()[:16]
        partial = folder / NOTES / PARTS / f"{path_digest}-{file.checksum or 'unknown'}-{file.size}"
        url = hf_hub_url(repo_id, file.path, repo_type=repo_type, revision=revision, endpoint=self.endpoint)
        part: Any = Part(partial, file, advance, stop)
        try:
            tries = 0
            while part.size < file.size or tries == 0:
                before, tries = part.size, tries + 1
                try:
                    # For each attempt, because the signed URL of the storage expires.
                    metadata = get_hf_file_metadata(url, token=self.token, timeout=TIMEOUT, endpoint=self.endpoint)
                    headers = build_hf_headers(token=self.token)
                    if urlparse(metadata.location).netloc != urlparse(url).netloc:
                        headers.pop("authorization", None)
                    http_get(
                        metadata.location,
                        part,
                        resume_size=part.size,
                        headers=headers,
                        expected_size=file.size,
                        tqdm_class=_NoBar,
                    )
                    part.stream.flush()
                except Exception as error:
                    if part.size > before:
                        tries = 1
                    if tries >= TRIES or not _is_retryable(error):
                        raise
                    time.sleep(min(2 ** (tries - 1), 8))
        finally:
            checksum = part.close()
        if file.checksum is not None and checksum != file.checksum:
            partial.unlink()
            raise WrongContent
        os.replace(partial, target)  # noqa: PTH105

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
        """Upload files one by one, then add all of them in one commit; see `Hub.upload`."""
        from huggingface_hub import CommitOperationAdd

        with explained(self.name, repo_id):
            _retry(lambda: self.api.create_repo(repo_id, private=private, exist_ok=True))
            if revision is not None:
                _retry(lambda: self.api.create_branch(repo_id, branch=revision, exist_ok=True))
            additions = [CommitOperationAdd(path, str(local)) for path, local in files]
            for addition, (path, local) in zip(additions, files, strict=True):
                self.api.preupload_lfs_files(repo_id, additions=[addition], revision=revision)
                advance(path, local.stat().st_size)
            _retry(lambda: self.api.create_commit(repo_id, additions, commit_message=message, revision=revision))

    def url(self, repo_id: str) -> str:
        """Return the URL of the repository's page."""
        return f"{self.endpoint}/{repo_id}"


class _NoBar:
    """A progress bar that shows nothing, with the methods of tqdm that http_get calls."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.n = self.total = 0

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *args: object) -> None:
        return None

    def update(self, n: int | float | None = 1) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _retry(request: Callable[[], Any]) -> Any:
    """Call `request` up to three times while the hub has a server error or the connection fails."""
    for attempt in range(2):
        try:
            return request()
        except Exception as error:
            if not _is_retryable(error) or _refused(error):
                raise
            time.sleep(2**attempt)
    return request()


def _is_retryable(error: Exception) -> bool:
    if isinstance(error, Stopped):
        return False
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int) and status >= 400:
        return status >= 500 or status in (408, 429)
    return type(error).__module__.split(".")[0] in ("httpx", "httpx2") or isinstance(error, ConnectionError)


def _refused(error: Exception) -> bool:
    """Return whether the connection was refused, which does not change within a second."""
    return type(error).__name__ == "ConnectError"


@functools.cache
def _set_default_timeout() -> None:
    """Set a timeout for every request of huggingface_hub; most of its calls have none."""
    from huggingface_hub.utils import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def factory() -> Any:
        client: Any = default_client_factory()
        send = client.send

        def send_with_timeout(request: Any, **settings: Any) -> Any:
            requested = request.extensions.get("timeout") or {}
            limits = {name: requested.get(name) or TIMEOUT for name in ("connect", "read", "write", "pool")}
            request.extensions = {**request.extensions, "timeout": limits}
            return send(request, **settings)

        client.send = send_with_timeout
        return client

    set_client_factory(factory)
