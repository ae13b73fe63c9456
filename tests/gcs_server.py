"""A server on 127.0.0.1 that follows the JSON API of Google Cloud Storage for what is used, and can be told to fail.

No package that installs as one has its conditions (ifGenerationMatch). What is asked is kept, and matched by faults, in
the form of S3, so that the same tests run against both: "GET /bucket/name" is the content of an object, HEAD what is
known of it, PUT a write or a part of one, and "GET /bucket?list-type=2" a page of a listing.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.s3_server import S3Server, Watched, served

MULTIPLE = 2**18  # of bytes in a part that is not the last


@dataclass
class Object:
    """What is stored under a name; `about` is the resource of the API."""

    content: bytes
    about: dict[str, Any]


@dataclass
class Upload:
    """A write in parts that is not whole."""

    bucket: str
    about: dict[str, Any]
    wanted: str | None
    content: bytearray = field(default_factory=bytearray)
    done: Object | None = None


@dataclass
class GcsServer(Watched):
    """The server: its address, what goes wrong, and what was asked of it."""

    scheme = "gs"
    url: str = ""
    buckets: dict[str, dict[str, Object]] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    token: str | None = None  # without which nothing is answered
    issued: str = ""  # the token that who signs in is given
    writes: Any = field(default_factory=threading.RLock)
    generations: Iterator[int] = field(default_factory=lambda: itertools.count(1_700_000_000_000_000))

    def put(self, bucket: str, name: str, content: bytes, about: dict[str, Any] | None = None) -> Object:
        """Put an object into a bucket, past the faults."""
        with self.writes:
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            known = {"name": name, "size": str(len(content)), "generation": str(next(self.generations))}
            made = Object(content, {**(about or {}), **known, "updated": now})
            self.buckets[bucket][name] = made
            return made

    def make_bucket(self, bucket: str) -> None:
        """Make an empty bucket."""
        self.buckets[bucket] = {}

    def pending(self, bucket: str) -> int:
        """Return how many writes in parts are neither whole nor given up."""
        return sum(each.bucket == bucket and each.done is None for each in self.uploads.values())


ObjectStore = S3Server | GcsServer


@contextmanager
def gcs_server() -> Iterator[GcsServer]:
    """Start the server in threads of this process."""
    server = GcsServer()
    with served(type("Handler", (_Handler,), {"server_of": server})) as server.url:
        yield server


class Refusal(Exception):
    """An answer with a status that says what is wrong."""


class _Handler(BaseHTTPRequestHandler):
    server_of: GcsServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _handle(self) -> None:
        gcs = self.server_of
        parts = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if parts.path == "/token":
            told = {"access_token": gcs.issued, "expires_in": 3600, "token_type": "Bearer"}
            self._answer(200, {"Content-Type": "application/json"}, json.dumps(told).encode())
            return
        found = re.fullmatch(r"/(download/|upload/)?storage/v1/b/([^/]+)/o(?:/(.*))?", parts.path)
        kind, self.bucket, key = found.groups() if found else ("", "", "")
        self.key = unquote(key or "")
        request = self._named(kind or "")
        with gcs.lock:
            gcs.requests.append((request, self.headers.get("Range")))
        fault = gcs.fault(request)
        if fault is not None and fault.wait:
            time.sleep(fault.wait)
        if fault is not None and fault.status is not None and not fault.lose_answer:
            self._answer(fault.status, {}, fault.says)
            return
        if gcs.token is not None and self.headers.get("Authorization") != f"Bearer {gcs.token}":
            self._answer(401, {}, b'{"error": {"code": 401, "message": "Invalid Credentials"}}')
            return
        try:
            with nullcontext() if self.command == "GET" else gcs.writes:
                status, headers, content = self._done(kind or "")
        except Refusal as refusal:
            status, headers = int(str(refusal)), {}
            content = json.dumps({"error": {"code": status, "message": "no"}}).encode()
        if fault is not None and fault.lose_answer:
            self._answer(503, {}, b"")
            return
        if fault is not None and fault.etag is not None:
            headers["x-goog-generation"] = "1"
        self._answer(status, headers, content, None if fault is None else fault.cut_after)

    do_GET = do_PUT = do_POST = do_DELETE = _handle

    def _named(self, kind: str) -> str:
        """Return the request as S3 would have it."""
        if "upload_id" in self.query:
            upload = self.server_of.uploads[self.query["upload_id"]]
            self.bucket, self.key = upload.bucket, upload.about["name"]
            first = re.match(r"bytes (\d+)-", self.headers.get("Content-Range", ""))
            part = "" if first is None else f"partNumber={1 + (int(first[1]) > 0)}&"
            return f"{self.command} /{self.bucket}/{quote(self.key)}?{part}uploadId=1"
        if kind == "upload/":
            self.about, self.content = self._uploaded()
            self.key = self.about["name"]
            begun = self.query["uploadType"] == "resumable"
            return f"{'POST' if begun else 'PUT'} /{self.bucket}/{quote(self.key)}{'?uploads' if begun else ''}"
        if not self.key:
            return f"{self.command} /{self.bucket}?list-type=2&prefix={quote(self.query.get('prefix', ''))}"
        command = "HEAD" if self.command == "GET" and not kind else self.command
        return f"{command} /{self.bucket}/{quote(self.key)}"

    def _uploaded(self) -> tuple[dict[str, Any], bytes]:
        if self.query["uploadType"] == "resumable":
            return json.loads(self.body), b""
        boundary = self.headers["Content-Type"].partition("boundary=")[2].encode()
        about, content = self.body.split(b"--" + boundary)[1:3]
        about, content = (each.removesuffix(b"\r\n").partition(b"\r\n\r\n")[2] for each in (about, content))
        return json.loads(about), content

    def _done(self, kind: str) -> tuple[int, dict[str, str], bytes]:
        if "upload_id" in self.query:
            return self._part()
        bucket = self.server_of.buckets.get(self.bucket)
        if bucket is None:
            raise Refusal(404)
        wanted = self.query.get("ifGenerationMatch")
        if kind == "upload/":
            self._require(wanted, self.bucket, self.key)
            if self.query["uploadType"] == "multipart":
                return self._told(self.server_of.put(self.bucket, self.key, self.content, self.about))
            name = str(len(self.server_of.uploads))
            self.server_of.uploads[name] = Upload(self.bucket, self.about, wanted)
            where = f"{self.server_of.url}/upload/storage/v1/b/{self.bucket}/o?uploadType=resumable&upload_id={name}"
            return 200, {"Location": where}, b""
        if not self.key:
            return self._listed(bucket)
        found = bucket.get(self.key)
        if found is None:
            raise Refusal(404)
        self._require(wanted, self.bucket, self.key)
        if self.command == "DELETE":
            del bucket[self.key]
            return 204, {}, b""
        return self._media(found) if kind == "download/" else self._told(found)

    def _require(self, wanted: str | None, bucket: str, key: str) -> None:
        found = self.server_of.buckets[bucket].get(key)
        if wanted is not None and wanted != ("0" if found is None else found.about["generation"]):
            raise Refusal(412)

    def _told(self, made: Object) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json; charset=UTF-8"}, json.dumps(made.about).encode()

    def _media(self, found: Object) -> tuple[int, dict[str, str], bytes]:
        headers = {"x-goog-generation": found.about["generation"]}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            return 200, headers, found.content
        first, last = int(asked[1]), int(asked[2])
        headers["Content-Range"] = f"bytes {first}-{last}/{len(found.content)}"
        return 206, headers, found.content[first : last + 1]

    def _listed(self, bucket: dict[str, Object]) -> tuple[int, dict[str, str], bytes]:
        names = sorted(name for name in bucket if name.startswith(self.query.get("prefix", "")))
        first, most = int(self.query.get("pageToken", 0)), int(self.query.get("maxResults", 1000))
        told: dict[str, Any] = {"kind": "storage#objects"}
        items = [bucket[name].about for name in names[first : first + most]]
        told |= {"items": items} if items else {}
        told |= {"nextPageToken": str(first + most)} if len(names) > first + most else {}
        return 200, {}, json.dumps(told).encode()

    def _part(self) -> tuple[int, dict[str, str], bytes]:
        upload = self.server_of.uploads[self.query["upload_id"]]
        if self.command == "DELETE":
            del self.server_of.uploads[self.query["upload_id"]]
            return 499, {}, b""
        span = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)", self.headers["Content-Range"])
        if span is None:
            raise Refusal(400)
        if span[1] is not None:
            if int(span[1]) != len(upload.content) or (int(span[2]) + 1 < int(span[3]) and len(self.body) % MULTIPLE):
                raise Refusal(400)
            upload.content += self.body
        if len(upload.content) < int(span[3]):
            there = {"Range": f"bytes=0-{len(upload.content) - 1}"} if upload.content else {}
            return 308, there, b""
        if upload.done is None:
            self._require(upload.wanted, upload.bucket, upload.about["name"])
            upload.done = self.server_of.put(upload.bucket, upload.about["name"], bytes(upload.content), upload.about)
        return self._told(upload.done)

    def _answer(self, status: int, headers: dict[str, str], content: bytes, cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content if cut is None else content[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
