"""Serve a folder as an S3 bucket called `data`, over a line of so many bytes a second: list, look, read ranges.

    python -m benchmarks.slow_store FOLDER --rate 125e6 --latency 0.02       # prints the address of the server

All connections share the line. Every request waits for the latency before its first byte.
"""

from __future__ import annotations

import argparse
import re
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "data"
BLOCK = 2**18  # bytes that are sent at a time
DATE = "%Y-%m-%dT%H:%M:%S.000Z"


class Line:
    """A line of `rate` bytes a second, one for all connections."""

    def __init__(self, rate: float) -> None:
        self.rate, self.free_at, self.lock = rate, 0.0, threading.Lock()

    def wait(self, size: int) -> None:
        """Wait until `size` bytes are through."""
        with self.lock:
            self.free_at = max(time.monotonic(), self.free_at) + size / self.rate
            until = self.free_at
        time.sleep(max(until - time.monotonic(), 0))


class Server(ThreadingHTTPServer):
    """A server that takes many connections at a time, as a store does: with five waiting, the next waits a second."""

    daemon_threads, request_queue_size = True, 128


def handler_of(folder: Path, line: Line, latency: float) -> type[BaseHTTPRequestHandler]:
    """Return the class that answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            self._answer(send=True)

        def do_HEAD(self) -> None:
            self._answer(send=False)

        def _answer(self, *, send: bool) -> None:
            time.sleep(latency)
            asked = urlsplit(self.path)
            name = unquote(asked.path).removeprefix(f"/{BUCKET}").lstrip("/")
            if not name:
                self._send(200, {"Content-Type": "application/xml"}, listing(folder, parse_qs(asked.query)))
                return
            path = folder / name
            if not path.is_file():
                self._send(404, {}, b"<Error><Code>NoSuchKey</Code></Error>" if send else b"")
                return
            size = path.stat().st_size
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            first, last = (int(found[1]), min(int(found[2]), size - 1)) if found else (0, size - 1)
            self.send_response(206 if found else 200)
            about = {"ETag": etag(path), "Last-Modified": formatdate(path.stat().st_mtime, usegmt=True)}
            about |= {"Content-Length": str(last + 1 - first), "Content-Range": f"bytes {first}-{last}/{size}"}
            for key, value in about.items():
                self.send_header(key, value)
            self.end_headers()
            if not send:
                return
            with path.open("rb") as stream:
                stream.seek(first)
                left = last + 1 - first
                while left:
                    block = stream.read(min(BLOCK, left))
                    line.wait(len(block))
                    self.wfile.write(block)
                    left -= len(block)

        def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

    return Handler


def etag(path: Path) -> str:
    """Return what tells the content of a file from others."""
    status = path.stat()
    return f'"{status.st_size:x}-{status.st_mtime_ns:x}"'


def listing(folder: Path, query: dict[str, list[str]]) -> bytes:
    """Return the answer to ListObjectsV2, on one page."""
    prefix = query.get("prefix", [""])[0]
    contents = ""
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        name = path.relative_to(folder).as_posix()
        if name.startswith(prefix):
            status = path.stat()
            changed = time.strftime(DATE, time.gmtime(status.st_mtime))
            contents += f"<Contents><Key>{escape(name)}</Key><LastModified>{changed}</LastModified>"
            contents += f"<ETag>{escape(etag(path))}</ETag><Size>{status.st_size}</Size></Contents>"
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{BUCKET}</Name><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
    ).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rate", type=float, default=125e6, help="bytes a second")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before the first byte")
    options = parser.parse_args()
    handler = handler_of(options.folder, Line(options.rate), options.latency)
    server = Server(("127.0.0.1", 0), handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
