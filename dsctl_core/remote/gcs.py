"""Speak with Google Cloud Storage by its JSON API, so that each request demands a certain generation.

gcsfs has the credentials and the connections. Its own calls try again by themselves, write on no condition but that
there is no file, and hand on nothing of an answer that was cut off.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from dsctl_core.files.json import decode_json
from dsctl_core.remote.backends import BLOCK, Ask, Found, Sink, Stamp
from dsctl_core.remote.conditional import PART, TAKEN, WRITE, ConditionalBackend, Page, bucket_and_key
from dsctl_core.remote.errors import RemoteError, changed

CANCELLED = 499  # of an upload that was given up
OF_A_FILE = "name,size,generation,updated"
BINARY = "application/octet-stream"


class Refused(OSError):
    """An answer with a status of 400 or more. Its URL, by which anybody may go on with an upload, is left out."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Reply(NamedTuple):
    """An answer: its status, its headers, and its content."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class GcsBackend(ConditionalBackend):
    """Google Cloud Storage: a version is the generation of an object, which each write changes."""

    no_version = "1"  # a generation is a time in microseconds

    def _settings(self) -> dict[str, Any]:
        # What is stored packed has the size that is listed: it is not unpacked on the way.
        settings: dict[str, Any] = {"use_listings_cache": False, "session_kwargs": {"auto_decompress": False}}
        if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):  # else a bad file would be passed over, for no credentials
            settings["token"] = "google_default"
        return settings

    def _file_system(self) -> Any:
        from gcsfs.core import GCSFileSystem  # the one of fsspec opens channels of gRPC, too

        return GCSFileSystem(skip_instance_cache=True, **self._settings())

    def _pages(self, prefix: str) -> Iterator[Page]:
        bucket, key = bucket_and_key(prefix)
        following: str | None = ""

        def page() -> list[tuple[Found, float]]:
            nonlocal following
            asked = {"maxResults": str(self.page), "fields": f"nextPageToken,items({OF_A_FILE})"}
            asked |= {"prefix": f"{key.rstrip('/')}/"} if key else {}
            asked |= {"pageToken": following} if following else {}
            told = self._json("GET", f"storage/v1/b/{bucket}/o", asked)
            following = told.get("nextPageToken")
            items = (each for each in told.get("items", ()) if not each["name"].endswith("/"))  # a folder of a console
            return [(self._of(f"{self.scheme}://{bucket}/{each['name']}", each), _time(each)) for each in items]

        while following is not None:
            yield page

    def _of(self, address: str, told: dict[str, Any]) -> Found:
        return Found(address, int(told.get("size", 0)), str(told["generation"]))

    def stat(self, address: str) -> Found | None:
        """Return a file, or None if there is none at the address."""
        told = self._about(address)
        return None if told is None else self._of(address, told)

    def stamp(self, address: str) -> Stamp | None:
        """Return when a file was written, or None if there is none at the address."""
        told = self._about(address)
        return None if told is None else Stamp(str(told["generation"]), _time(told))

    def _about(self, address: str) -> dict[str, Any] | None:
        bucket, key = bucket_and_key(address)
        if not key:
            return None
        try:
            return self._json("GET", _object(bucket, key), {"fields": f"{OF_A_FILE},metadata"})
        except Refused as error:
            if error.status == 404:
                return None
            raise

    def pull(self, file: Found, start: int, end: int, sink: Sink) -> None:
        """Hand on a range of the generation that was listed."""
        from fsspec.asyn import sync

        async def stream() -> None:
            asked = {"alt": "media", "ifGenerationMatch": file.version}
            headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "gzip"}
            async with self._answer(
                "GET", f"download/{_object(*bucket_and_key(file.address))}", asked, headers
            ) as answer:
                if answer.headers.get("x-goog-generation", file.version) != file.version:
                    raise changed(file.address)
                async for block in answer.content.iter_chunked(BLOCK):
                    sink(block)

        try:
            sync(self.fs.loop, stream)
        except Refused as error:
            if error.status == 412:
                raise changed(file.address) from error
            raise

    def put(
        self, address: str, data: bytes | Path, *, if_absent: bool, if_version: str | None, token: str, ask: Ask
    ) -> str:
        """Write in one request, or in parts that are one file when the last is there."""
        wanted = "0" if if_absent else if_version
        asked = {} if wanted is None else {"ifGenerationMatch": wanted}
        if isinstance(data, Path) and data.stat().st_size > PART:
            return self._put_parts(data, address, asked, token, ask)
        bucket, key = bucket_and_key(address)
        about = json.dumps({"name": key, "metadata": {WRITE: token}})
        kinds = [f"\r\nContent-Type: {kind}\r\n\r\n" for kind in ("application/json; charset=UTF-8", BINARY)]

        def write() -> str:
            body = data if isinstance(data, bytes) else data.read_bytes()
            head, tail = f"--{token}{kinds[0]}{about}\r\n--{token}{kinds[1]}", f"\r\n--{token}--"
            headers = {"Content-Type": f"multipart/related; boundary={token}"}
            whole = b"".join((head.encode(), body, tail.encode()))
            where = f"upload/storage/v1/b/{bucket}/o"
            return _generation(self._call("POST", where, {"uploadType": "multipart", **asked}, headers, whole))

        return ask(lambda: self._committed(write, address, token, asked))

    def _committed(self, write: Callable[[], str], address: str, token: str, asked: dict[str, str]) -> str:
        """Make the request that completes a write; return the generation that was written.

        An earlier try of the same write may have come through, though its answer was lost: then that is its answer.
        """
        try:
            return write()
        except Refused as error:
            if error.status in TAKEN:
                told = self._about(address)
                if told is not None and told.get("metadata", {}).get(WRITE) == token:
                    return str(told["generation"])
                if told is None and asked.get("ifGenerationMatch", "0") != "0":
                    raise FileNotFoundError(address) from error  # what was to be replaced is gone
            raise

    def _put_parts(self, data: Path, address: str, asked: dict[str, str], token: str, ask: Ask) -> str:
        """Write a file in parts, each of which is tried again by itself, from the byte that the store has."""
        bucket, key = bucket_and_key(address)
        size, position, sure = data.stat().st_size, 0, True
        about = json.dumps({"name": key, "metadata": {WRITE: token}}).encode()
        headers = {"Content-Type": "application/json; charset=UTF-8", "X-Upload-Content-Type": BINARY}
        begin = {"uploadType": "resumable", **asked}
        where = f"upload/storage/v1/b/{bucket}/o"
        session = ask(lambda: self._call("POST", where, begin, headers, about).headers["Location"])

        def send() -> str:
            """Send a part; return the generation when it was the last, "" before."""
            nonlocal position, sure
            if not sure:
                reply = self._call("PUT", session, {}, {"Content-Range": f"bytes */{size}"})
                if reply.status != 308:
                    return _generation(reply)
                position = _received(reply)
            sure = False
            block = stream_at(position)
            last = position + len(block) - 1
            reply = self._call("PUT", session, {}, {"Content-Range": f"bytes {position}-{last}/{size}"}, block)
            sure = True
            if reply.status != 308:
                return _generation(reply)
            position = _received(reply)
            return ""

        def stream_at(start: int) -> bytes:
            stream.seek(start)
            return stream.read(PART)

        try:
            with data.open("rb") as stream:
                while not (generation := ask(lambda: self._committed(send, address, token, asked))):
                    pass
            return generation
        except BaseException:
            with suppress(Exception):  # the first error is the one to show
                self._call("DELETE", session, {}, {})
            raise

    def delete(self, address: str, if_version: str | None = None) -> None:
        """Remove a file; that there is none, or another than `if_version`, is no error."""
        asked = {} if if_version is None else {"ifGenerationMatch": if_version}
        try:
            self._call("DELETE", _object(*bucket_and_key(address)), asked, {})
        except Refused as error:
            if error.status not in TAKEN:
                raise

    def _json(self, method: str, where: str, asked: dict[str, str]) -> dict[str, Any]:
        told = decode_json(self._call(method, where, asked, {}).content)
        if not isinstance(told, dict):
            raise RemoteError(f"{self.fs.base} does not answer as Google Cloud Storage does", hint="check the endpoint")
        return told

    def _call(
        self, method: str, where: str, asked: dict[str, str], headers: dict[str, str], data: bytes | None = None
    ) -> Reply:
        from fsspec.asyn import sync

        async def call() -> Reply:
            async with self._answer(method, where, asked, {"Accept-Encoding": "identity", **headers}, data) as answer:
                return Reply(answer.status, answer.headers, await answer.read())

        reply: Reply = sync(self.fs.loop, call)
        return reply

    @asynccontextmanager
    async def _answer(
        self, method: str, where: str, asked: dict[str, str], headers: dict[str, str], data: bytes | None = None
    ) -> AsyncIterator[Any]:
        """Make one request with the credentials of gcsfs; `where` is below the root of the API, or an upload's URL."""
        import aiohttp

        url = where if where.startswith("http") else f"{self.fs.base.removesuffix('storage/v1/')}{where}"
        wait = self.patience.timeout
        timeout = aiohttp.ClientTimeout(total=None, connect=wait, sock_read=wait)
        how: dict[str, Any] = {"params": self.fs._get_params(asked), "headers": self.fs._get_headers(headers)}
        session, body = await self.fs._set_session(), None if data is None else io.BytesIO(data)
        async with session.request(method, url, data=body, timeout=timeout, allow_redirects=False, **how) as answer:
            if answer.status >= 400 and answer.status != CANCELLED:
                raise Refused(answer.status, _reason(await answer.read()) or answer.reason or "")
            yield answer


def _object(bucket: str, key: str) -> str:
    return f"storage/v1/b/{bucket}/o/{quote(key, safe='')}"


def _time(told: dict[str, Any]) -> float:
    return datetime.fromisoformat(told["updated"].replace("Z", "+00:00")).timestamp()


def _reason(content: bytes) -> str | None:
    """Return what the API says is wrong, None for another answer."""
    try:
        return str(decode_json(content)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return None


def _generation(reply: Reply) -> str:
    return str(decode_json(reply.content)["generation"])


def _received(reply: Reply) -> int:
    """Return how many bytes of an upload in parts are there."""
    there = reply.headers.get("Range")  # bytes=0-524287, or none
    return 0 if there is None else int(there.rpartition("-")[2]) + 1
