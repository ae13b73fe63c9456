"""Speak with each kind of store: page its listing, name a version and keep to it, write on a condition.

Each method is one request, without a retry of its own. Versions are texts that tell the content of a file from others:
the ETag, the generation, or what the store has in its place.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from dsctl_core.errors import UsageError
from dsctl_core.remote.address import scheme_of
from dsctl_core.remote.errors import RemoteError, changed, status_of
from dsctl_core.remote.retry import Patience

Sink = Callable[[bytes], object]
Answer = TypeVar("Answer")
BLOCK = 2**18  # bytes that are handed on at a time
PAGE = 1000  # files of one request for a listing, the most that most stores give
COMPARED = 8 * 2**20  # bytes that are compared at a time
WRITABLE = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "memory")
WITH_EXTRA = {
    "s3": "remote",
    "s3a": "remote",
    "http": "remote",
    "https": "remote",
    "gs": "remote-gcs",
    "gcs": "remote-gcs",
}
VERSIONS = (
    "ETag",
    "etag",
    "generation",
    "md5Hash",
    "Content-MD5",
    "blob_id",
    "Last-Modified",
    "last_modified",
    "mtime",
    "created",
)


class Found(NamedTuple):
    """A file in a store: its full address, its size in bytes, and its version."""

    address: str
    size: int
    version: str


class Stamp(NamedTuple):
    """The version of a file, and when it was written: seconds since 1970, by the clock of the store."""

    version: str
    time: float


class Ask(Protocol):
    """Makes a request, again after an error that may pass."""

    def __call__(self, request: Callable[[], Answer], /) -> Answer:
        """Return what `request` returns."""
        ...


class Backend:
    """Any file system of fsspec, by its public methods."""

    page = PAGE
    conditional = False  # whether a file can be written on the condition that none, or a certain version, is there

    no_version = ""  # of a store that is conditional: a version that no file has

    def __init__(self, address: str, patience: Patience) -> None:
        self.scheme, self.patience = scheme_of(address), patience
        self.fs = self._opened(address)

    def _settings(self) -> dict[str, Any]:
        return {"use_listings_cache": False}

    def _file_system(self) -> Any:
        import fsspec

        # Without the cache of instances: another part of the program may have set up its own, with other retries.
        return fsspec.filesystem(self.scheme, skip_instance_cache=self.scheme != "memory", **self._settings())

    def _opened(self, address: str) -> Any:
        try:
            return self._file_system()
        except ImportError as error:
            extra = WITH_EXTRA.get(self.scheme)
            how = f"dsctl[{extra}]" if extra else "the package that fsspec names for it"
            raise RemoteError(
                f"{address} cannot be opened: {self.scheme}:// needs a package that is not installed",
                hint=f"pip install {how}",
            ) from error
        except ValueError as error:
            raise UsageError(
                f"{address} has the scheme {self.scheme}://, which fsspec does not know",
                hint="use s3://, gs://, hf://, modelscope://, https:// or another scheme of fsspec",
            ) from error

    def pages(self, prefix: str) -> Iterator[Callable[[], list[Found]]]:
        """Yield requests, each of which returns the next files whose address starts with the folder `prefix`."""

        def all_at_once() -> list[Found]:
            try:
                found = self.fs.find(prefix, detail=True)
            except FileNotFoundError:
                return []
            return [self._found(info) for _, info in sorted(found.items()) if info.get("type") != "directory"]

        yield all_at_once

    def stat(self, address: str) -> Found | None:
        """Return a file, or None if there is none at the address."""
        try:
            info = self.fs.info(address)
        except FileNotFoundError:
            return None
        return self._found(info, address) if info.get("type") == "file" else None

    def pull(self, file: Found, start: int, end: int, sink: Sink) -> None:
        """Hand the bytes from `start` to before `end` to `sink`, as they come."""
        sink(self.fs.cat_file(file.address, start=start, end=end))

    def keeps_version(self, file: Found) -> bool:
        """Return whether a file still has its version; asked after it was read where no request can demand it."""
        return self.stat(file.address) == file

    def put(
        self, address: str, data: bytes | Path, *, if_absent: bool, if_version: str | None, token: str, ask: Ask
    ) -> str:
        """Write a file that is whole or absent, and return its version, "" where that is not known.

        `token` tells this write from others, and `ask` makes each of its requests.
        """
        if if_version is not None:
            raise self.unconditional(address)
        mode = {"mode": "create"} if if_absent else {}

        def write() -> None:
            try:
                if isinstance(data, bytes):
                    self.fs.pipe_file(address, data, **mode)
                else:
                    self.fs.put_file(str(data), address, **mode)
            except FileExistsError:
                if not self._has(address, data):  # an earlier try has come through, and its answer was lost
                    raise

        ask(write)
        return ""

    def _has(self, address: str, data: bytes | Path) -> bool:
        """Return whether a file has the content `data`."""
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        if self.fs.info(address)["size"] != size:
            return False
        with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as stream:
            starts = range(0, size, COMPARED)
            return all(stream.read(COMPARED) == self.fs.cat_file(address, at, at + COMPARED) for at in starts)

    def stamps(self, prefix: str) -> Iterator[Callable[[], dict[str, Stamp]]]:
        """Raise RemoteError: what the time of a file is worth is not known here."""
        raise self.unconditional(prefix)

    def stamp(self, address: str) -> Stamp | None:
        """Raise RemoteError, as `stamps` does."""
        raise self.unconditional(address)

    def unconditional(self, address: str) -> RemoteError:
        """Return the error for what needs writes on a condition."""
        return RemoteError(
            f"{address} cannot be replaced safely: {self.scheme}:// has no conditional write here",
            hint="use s3:// or gs://",
        )

    def delete(self, address: str, if_version: str | None = None) -> None:
        """Remove a file; that there is none is no error."""
        if if_version is not None:
            raise self.unconditional(address)
        try:
            self.fs.rm_file(address)
        except FileNotFoundError:
            return

    def _found(self, info: dict[str, Any], address: str | None = None) -> Found:
        name = address or f"{self.scheme}://{self.fs._strip_protocol(info['name']).lstrip('/')}"
        lfs = info.get("lfs")
        version = getattr(lfs, "sha256", None) or next((info[key] for key in VERSIONS if info.get(key)), None)
        if isinstance(version, datetime):
            version = version.timestamp()  # some listings have the number, where a single answer has the time
        if info.get("size") is None:
            raise RemoteError(f"{name} has no size: the server does not say how long it is", hint="use another server")
        return Found(name, int(info["size"]), str(version or ""))


class HttpBackend(Backend):
    """A web server: files by name, without a listing."""

    def _settings(self) -> dict[str, Any]:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, connect=self.patience.timeout, sock_read=self.patience.timeout)
        return {"client_kwargs": {"timeout": timeout}, "use_listings_cache": False}

    def pages(self, prefix: str) -> Iterator[Callable[[], list[Found]]]:
        """Raise RemoteError: a page of links is no listing."""
        raise RemoteError(
            f"{prefix} cannot be listed: a web server has no listing of files",
            hint="name the table with --dataset-metadata-path, or the shards: https://host/shard-{000000..000009}.tar",
        )

    def stat(self, address: str) -> Found | None:
        """Return a file, or None if the server says that there is none; fsspec says so after every error."""
        try:
            return self._found(self.fs.info(_url(address)), address)
        except FileNotFoundError as error:
            cause = error.__cause__
            if cause is None or isinstance(cause, FileNotFoundError) or status_of(cause) in (404, 410):
                return None
            raise cause from None

    def pull(self, file: Found, start: int, end: int, sink: Sink) -> None:
        """Hand on a range; the server is to send another version with the status 412, or with another ETag."""
        from fsspec.asyn import sync

        async def stream() -> None:
            session = await self.fs.set_session()
            strong = file.version.startswith('"')
            headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
            headers |= {"If-Match": file.version} if strong else {}
            async with session.get(self.fs.encode_url(_url(file.address)), headers=headers) as answer:
                if answer.status == 412 or (strong and answer.headers.get("ETag", file.version) != file.version):
                    raise changed(file.address)
                answer.raise_for_status()
                if answer.status != 206 and (start, end) != (0, file.size):
                    raise RemoteError(
                        f"{file.address} cannot be read in parts: the server does not know ranges",
                        hint="use another server",
                    )
                async for block in answer.content.iter_chunked(BLOCK):
                    sink(block)

        sync(self.fs.loop, stream)


def _url(address: str) -> str:
    """Return the URL of a file: ? and # in an address are of its name."""
    return address.replace("?", "%3F").replace("#", "%23")


def new_token() -> str:
    """Return what tells one write from others."""
    return uuid.uuid4().hex
