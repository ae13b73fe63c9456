"""Speak with S3, and with what speaks like it, by its own calls, so that each request demands a certain version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from dsctl_core.remote.backends import BLOCK, Ask, Found, Sink, Stamp
from dsctl_core.remote.conditional import PART, TAKEN, WRITE, ConditionalBackend, Page, bucket_and_key
from dsctl_core.remote.errors import changed, status_of

MOST_PARTS = 9000  # of one upload; S3 takes 10,000


class S3Backend(ConditionalBackend):
    """S3 and what speaks like it, by its own calls, so that each request demands the version that was listed."""

    no_version = '"00000000000000000000000000000000"'  # an ETag with the length of an MD5

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
        bucket, key = bucket_and_key(address)
        return {"Bucket": bucket, "Key": key}

    def stamp(self, address: str) -> Stamp | None:
        """Return when a file was written, or None if there is none at the address."""
        try:
            answer = self.fs.call_s3("head_object", **self._at(address))
        except FileNotFoundError:
            return None
        return Stamp(answer["ETag"], answer["LastModified"].timestamp())

    def _pages(self, prefix: str) -> Iterator[Page]:
        bucket, key = bucket_and_key(prefix)
        following: dict[str, str] | None = {}

        def page() -> list[tuple[Found, float]]:
            nonlocal following
            below = f"{key.rstrip('/')}/" if key else ""
            answer = self.fs.call_s3(
                "list_objects_v2", Bucket=bucket, Prefix=below, MaxKeys=self.page, **(following or {})
            )
            token = answer.get("NextContinuationToken") if answer.get("IsTruncated") else None
            following = None if token is None else {"ContinuationToken": token}
            return [
                (
                    Found(f"{self.scheme}://{bucket}/{each['Key']}", int(each["Size"]), each["ETag"]),
                    each["LastModified"].timestamp(),
                )
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

    def put(
        self, address: str, data: bytes | Path, *, if_absent: bool, if_version: str | None, token: str, ask: Ask
    ) -> str:
        """Write in one request, or in parts that are one file when the last is there."""
        condition = {"IfNoneMatch": "*"} if if_absent else {} if if_version is None else {"IfMatch": if_version}
        about = {**self._at(address), "Metadata": {WRITE: token}}
        if isinstance(data, Path) and data.stat().st_size > PART:
            return self._put_parts(data, address, about, condition, ask)

        def write() -> str:
            body = data if isinstance(data, bytes) else data.read_bytes()
            return self._committed("put_object", address, token, **about, Body=body, **condition)

        return ask(write)

    def _committed(self, call: str, address: str, token: str, **how: Any) -> str:
        """Make the request that completes a write; return the version that was written.

        An earlier try of the same write may have come through, though its answer was lost: then that is its answer.
        """
        try:
            return str(self.fs.call_s3(call, **how).get("ETag", ""))
        except OSError as error:
            if status_of(error.__cause__ or error) in TAKEN:
                with suppress(FileNotFoundError):
                    answer = self.fs.call_s3("head_object", **self._at(address))
                    if answer.get("Metadata", {}).get(WRITE) == token:
                        return str(answer["ETag"])
            raise

    def _put_parts(self, data: Path, address: str, about: dict[str, Any], condition: dict[str, str], ask: Ask) -> str:
        """Write a file in parts, each of which is tried again by itself."""
        where = self._at(address)
        upload = ask(lambda: self.fs.call_s3("create_multipart_upload", **about)["UploadId"])
        size = max(PART, -(-data.stat().st_size // MOST_PARTS))

        def put(number: int, block: bytes) -> dict[str, Any]:
            one = {"UploadId": upload, "PartNumber": number, "Body": block}
            return {"PartNumber": number, "ETag": ask(lambda: self.fs.call_s3("upload_part", **where, **one)["ETag"])}

        try:
            parts: list[dict[str, Any]] = []
            with data.open("rb") as stream:
                while block := stream.read(size):
                    parts.append(put(len(parts) + 1, block))
            whole = {"UploadId": upload, "MultipartUpload": {"Parts": parts}, **condition}
            token = about["Metadata"][WRITE]
            call = "complete_multipart_upload"
            return ask(lambda: self._committed(call, address, token, **where, **whole))
        except BaseException:
            with suppress(Exception):  # the first error is the one to show
                self.fs.call_s3("abort_multipart_upload", **where, UploadId=upload)
            raise

    def delete(self, address: str, if_version: str | None = None) -> None:
        """Remove a file; that there is none, or another than `if_version`, is no error."""
        condition = {} if if_version is None else {"IfMatch": if_version}
        try:
            self.fs.call_s3("delete_object", **self._at(address), **condition)
        except OSError as error:
            if status_of(error.__cause__ or error) not in TAKEN:
                raise
