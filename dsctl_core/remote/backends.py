"""Speak with each kind of store: page its listing, name a version and keep to it, write on a condition.

Each method is one request, without a retry of its own. Versions are texts that tell the content of a file from others:
the ETag, the generation, or what the store has in its place.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from dsctl_core.errors import UsageError
from dsctl_core.remote.address import scheme_of
from dsctl_core.remote.errors import RemoteError, changed, status_of
from dsctl_core.remote.retry import Patience

Sink = Callable[[bytes], object]
BLOCK = 2**18  # bytes that are handed on at a time
PAGE = 1000  # files of one request for a listing, the most that S3 gives
PART = 64 * 2**20  # bytes of one part of an upload
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


class Backend:
    """Any file system of fsspec, by its public methods."""

    conditional = False  # whether a certain version can be replaced, and no other

    def __init__(self, address: str, patience: Patience) -> None:
        self.scheme, self.patience = scheme_of(address), patience
        self.fs = self._opened(address)

    def _settings(self) -> dict[str, Any]:
        return {"use_listings_cache": False}

    def _opened(self, address: str) -> Any:
        import fsspec

        try:
            # Without the cache of instances: another part of the program may have set up its own, with other retries.
            return fsspec.filesystem(self.scheme, skip_instance_cache=self.scheme != "memory", **self._settings())
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
                hint="use s3://, gs://, hf://, https:// or another scheme of fsspec",
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

    def put(self, address: str, data: bytes | Path, *, if_absent: bool, if_version: str | None, token: str) -> None:
        """Write a file that is whole or absent. `token` is the same for all tries of one write."""
        if if_version is not None:
            raise RemoteError(
                f"{address} cannot be replaced safely: {self.scheme}:// has no conditional write here",
                hint="use s3://",
            )
        content = data if isinstance(data, bytes) else data.read_bytes()
        try:
            self.fs.pipe_file(address, content, **({"mode": "create"} if if_absent else {}))
        except FileExistsError:
            if self.fs.cat_file(address) != content:  # an earlier try has come through, and its answer was lost
                raise

    def delete(self, address: str) -> None:
        """Remove a file; that there is none is no error."""
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
            return self._found(self.fs.info(address), address)
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
            async with session.get(self.fs.encode_url(file.address), headers=headers) as answer:
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


class S3Backend(Backend):
    """S3 and what speaks like it, by its own calls, so that each request demands the version that was listed."""

    conditional = True

    def _settings(self) -> dict[str, Any]:
        timeout = self.patience.timeout
        once = {"total_max_attempts": 1, "mode": "standard"}  # `retried` alone tries again
        config = {"connect_timeout": timeout, "read_timeout": timeout, "retries": once}
        return {"config_kwargs": config, "use_listings_cache": False}

    def _opened(self, address: str) -> Any:
        made = super()._opened(address)
        made.retries = 1
        return made

    def _at(self, address: str) -> dict[str, str]:
        bucket, _, key = address.partition("://")[2].partition("/")
        return {"Bucket": bucket, "Key": key}

    def pages(self, prefix: str) -> Iterator[Callable[[], list[Found]]]:
        """Yield requests, of `PAGE` files each."""
        bucket, _, key = prefix.partition("://")[2].partition("/")
        following: dict[str, str] | None = {}

        def page() -> list[Found]:
            nonlocal following
            below = f"{key.rstrip('/')}/" if key else ""
            answer = self.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=below, MaxKeys=PAGE, **(following or {}))
            token = answer.get("NextContinuationToken") if answer.get("IsTruncated") else None
            following = None if token is None else {"ContinuationToken": token}
            return [
                Found(f"{self.scheme}://{bucket}/{each['Key']}", int(each["Size"]), each["ETag"])
                for each in answer.get("Contents", ())
                if not each["Key"].endswith("/")  # what consoles make to show an empty folder
            ]

        while following is not None:
            yield page

    def stat(self, address: str) -> Found | None:
        """Return a file, or None if there is none at the address."""
        if not self._at(address)["Key"]:
            return None
        try:
            answer = self.fs.call_s3("head_object", **self._at(address))
        except FileNotFoundError:
            return None
        return Found(address, int(answer["ContentLength"]), answer["ETag"])

    def pull(self, file: Found, start: int, end: int, sink: Sink) -> None:
        """Hand on a range of the version that was listed."""
        from fsspec.asyn import sync

        async def stream() -> None:
            wanted = {"Range": f"bytes={start}-{end - 1}", "IfMatch": file.version}
            answer = await self.fs._call_s3("get_object", **self._at(file.address), **wanted)
            body = answer["Body"]
            try:
                if answer.get("ETag", file.version) != file.version:
                    raise changed(file.address)
                while block := await body.read(BLOCK):
                    sink(block)
            finally:
                body.close()

        try:
            sync(self.fs.loop, stream)
        except OSError as error:
            if error.__cause__ is not None and status_of(error.__cause__) == 412:
                raise changed(file.address) from error
            raise

    def keeps_version(self, file: Found) -> bool:
        """Return True: each request has demanded it."""
        return True

    def put(self, address: str, data: bytes | Path, *, if_absent: bool, if_version: str | None, token: str) -> None:
        """Write in one request, or in parts that are one file when the last is there."""
        condition = {"IfNoneMatch": "*"} if if_absent else {} if if_version is None else {"IfMatch": if_version}
        about = {**self._at(address), "Metadata": {"dsctl-write": token}}
        try:
            if isinstance(data, Path) and data.stat().st_size > PART:
                self._put_parts(data, about, condition)
            else:
                body = data if isinstance(data, bytes) else data.read_bytes()
                self.fs.call_s3("put_object", **about, Body=body, **condition)
        except OSError as error:
            own = error.__cause__ or error
            if status_of(own) not in (409, 412) or not self._is_ours(address, token):
                raise

    def _is_ours(self, address: str, token: str) -> bool:
        """Return whether an earlier try of the same write has come through, whose answer was lost."""
        try:
            answer = self.fs.call_s3("head_object", **self._at(address))
        except FileNotFoundError:
            return False
        return bool(answer.get("Metadata", {}).get("dsctl-write") == token)

    def _put_parts(self, data: Path, about: dict[str, Any], condition: dict[str, str]) -> None:
        where = {name: about[name] for name in ("Bucket", "Key")}
        upload = self.fs.call_s3("create_multipart_upload", **about)["UploadId"]
        try:
            parts: list[dict[str, Any]] = []
            with data.open("rb") as stream:
                while block := stream.read(PART):
                    number = len(parts) + 1
                    answer = self.fs.call_s3("upload_part", **where, UploadId=upload, PartNumber=number, Body=block)
                    parts.append({"PartNumber": number, "ETag": answer["ETag"]})
            whole = {"MultipartUpload": {"Parts": parts}}
            self.fs.call_s3("complete_multipart_upload", **where, UploadId=upload, **whole, **condition)
        except BaseException:
            self.fs.call_s3("abort_multipart_upload", **where, UploadId=upload)
            raise

    def delete(self, address: str) -> None:
        """Remove a file; that there is none is no error."""
        self.fs.call_s3("delete_object", **self._at(address))


def open_backend(address: str, patience: Patience) -> Backend:
    """Return the backend for the scheme of an address."""
    kinds: dict[str, type[Backend]] = {"s3": S3Backend, "s3a": S3Backend, "http": HttpBackend, "https": HttpBackend}
    return kinds.get(scheme_of(address), Backend)(address, patience)


def new_token() -> str:
    """Return what tells one write from others."""
    return uuid.uuid4().hex
