"""A real S3 server on 127.0.0.1 (moto's), behind a proxy that can be told to fail.

A `Fault` matches "METHOD /path"; it waits, answers with a status, cuts the connection after some bytes of the body, or
answers with another ETag. What was asked, and with which ranges, is kept.
"""

from __future__ import annotations

import http.client
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass
class Fault:
    """What goes wrong, the first `times` times that a request matches."""

    match: str
    status: int | None = None
    says: bytes = b""  # the content of that answer, of Google Cloud Storage
    wait: float = 0.0
    cut_after: int | None = None
    etag: str | None = None
    lose_answer: bool = False  # the request is carried out, and its answer is a 503
    times: int = 10**9


@dataclass(kw_only=True)
class Watched:
    """What goes wrong with a server, and what was asked of it."""

    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def fault(self, request: str) -> Fault | None:
        """Return what goes wrong with a request, once less often from then on."""
        with self.lock:
            for each in self.faults:
                if each.times > 0 and each.match in request:
                    each.times -= 1
                    return each
        return None

    def asked(self, match: str) -> list[str | None]:
        """Return the ranges of the requests that match."""
        return [range_ for request, range_ in self.requests if match in request]


@dataclass
class S3Server(Watched):
    """The server: its address, what goes wrong, and what was asked of it."""

    scheme = "s3"
    url: str
    backend: int
    client: Any
    writes: Any = field(default_factory=threading.Lock)  # S3 looks at a condition and writes in one

    def put(self, bucket: str, name: str, content: bytes) -> None:
        """Put a file into a bucket, past the faults."""
        self.client.put_object(Bucket=bucket, Key=name, Body=content, ACL="public-read")  # so by plain HTTP, too

    def make_bucket(self, bucket: str) -> None:
        """Make an empty bucket."""
        self.client.create_bucket(Bucket=bucket)

    def pending(self, bucket: str) -> int:
        """Return how many writes in parts are neither whole nor given up."""
        return len(self.client.list_multipart_uploads(Bucket=bucket).get("Uploads", ()))


class Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients that give up close their connections."""


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Answer with `handler` in threads of this process; give the address."""
    proxy = Proxy(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}"
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Start the server and its proxy in threads of this process."""
    import botocore.session
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    backend = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    backend.start()
    port = backend.get_host_and_port()[1]
    session = botocore.session.Session()
    session.set_credentials(KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"])
    client = session.create_client("s3", KEYS["AWS_DEFAULT_REGION"], endpoint_url=f"http://127.0.0.1:{port}")
    server = S3Server("", port, client)
    try:
        with served(_handler(server)) as server.url:
            yield server
    finally:
        backend.stop()


def _handler(server: S3Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _pass_on(self) -> None:
            request = f"{self.command} {self.path}"
            body = self._body()
            with server.lock:
                server.requests.append((request, self.headers.get("Range")))
            fault = server.fault(request)
            if fault is not None and fault.wait:
                time.sleep(fault.wait)
            if fault is not None and fault.status is not None and not fault.lose_answer:
                self._answer(fault.status, [], b"")
                return
            with nullcontext() if self.command in ("GET", "HEAD") else server.writes:
                status, headers, content = self._ask(body)
            if fault is not None and fault.lose_answer:
                self._answer(503, [], b"")
                return
            if fault is not None and fault.etag is not None:
                headers = [(key, fault.etag if key.lower() == "etag" else value) for key, value in headers]
            self._answer(status, headers, content, None if fault is None else fault.cut_after)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass_on

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            made = b""
            while size := int(self.rfile.readline(), 16):
                made += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return made

        def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", server.backend)
            kept = {key: value for key, value in self.headers.items() if key.lower() != "transfer-encoding"}
            if self.command in ("PUT", "POST"):
                kept["Content-Length"] = str(len(body))
            connection.request(self.command, self.path, body=body or None, headers=kept)
            answer = connection.getresponse()
            content = answer.read()
            skipped = ("transfer-encoding", "connection")
            headers = [(key, value) for key, value in answer.getheaders() if key.lower() not in skipped]
            connection.close()
            return answer.status, headers, content

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, cut: int | None = None) -> None:
            self.send_response(status)
            for key, value in headers:
                self.send_header(key, value)
            if not any(key.lower() == "content-length" for key, _ in headers):
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content if cut is None else content[:cut])
            if cut is not None:
                self.wfile.flush()
                self.close_connection = True

    return Handler
