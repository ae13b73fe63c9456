"""A small hub on 127.0.0.1 that speaks to both SDKs, and can be told to fail.

It answers the endpoints that huggingface_hub and modelscope_hub use for listing, downloading and uploading. A `Fault`
matches "METHOD /path"; it answers with a status, breaks the connection after some bytes, sends other bytes, or
answers as if a range had not been asked for.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

from tests.hub_history import History

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_SIZE = 2000


@dataclass
class Fault:
    """What goes wrong, the first `times` times that a request matches."""

    match: str
    status: int | None = None
    drop_after: int | None = None
    hold: threading.Event | None = None  # after `drop_after` bytes nothing more comes, until this is set
    corrupt: bool = False
    ignore_range: bool = False
    times: int = 10**9
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class LocalHub:
    """What is on the hub, what goes wrong, and what was asked of it."""

    url: str = ""
    storage: str = ""  # the same server under another name, as hubs keep large files elsewhere
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)  # "models/owner/name" -> path -> content
    revisions: tuple[str, ...] = ("main", "master", COMMIT)
    histories: dict[str, History] = field(default_factory=dict)  # of datasets of ModelScope that have one
    private: set[str] = field(default_factory=set)
    tokens: dict[str, str] = field(default_factory=dict)  # repository -> the token without which it is not shown
    faults: list[Fault] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def add(self, repo: str, files: dict[str, bytes], kind: str = "models") -> None:
        """Put a repository on the hub."""
        self.repos[f"{kind}/{repo}"] = files

    def dataset(self, repo: str, files: dict[str, bytes]) -> History:
        """Put a dataset with a history on ModelScope."""
        made = self.histories[f"datasets/{repo}"] = History()
        made.push(files)
        return made

    def fault(self, request: str) -> Fault | None:
        """Return what goes wrong with a request, once less often from then on."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.match, request):
                    fault.times -= 1
                    return fault
        return None

    def asked(self, pattern: str) -> list[dict[str, str]]:
        """Return the headers of the requests so far that match a pattern."""
        return [headers for request, headers in self.requests if re.search(pattern, request)]


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """Run a hub for the length of the block."""
    hub = LocalHub()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    hub.storage = hub.url.replace("127.0.0.1", "localhost")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def is_lfs(path: str, content: bytes) -> bool:
    return path.endswith(".safetensors") or len(content) > LFS_SIZE


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing when a client goes away in the middle: that is what is being tested."""


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Keep the tests' output clean."""

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else b""
        parsed = urlparse(self.path)
        self.query = {name: values[0] for name, values in parse_qs(parsed.query).items()}
        place = unquote(parsed.path)
        request = f"{self.command} {place}" + (f"?{self.query['FilePath']}" if "FilePath" in self.query else "")
        self.hub.requests.append((request, {name.lower(): value for name, value in self.headers.items()}))
        self.trouble = self.hub.fault(request)
        if self.trouble is not None and self.trouble.status is not None:
            self.send({"error": "no", "Code": 1, "Message": "no"}, self.trouble.status, **self.trouble.headers)
            return
        for pattern, name in ROUTES:
            match = re.fullmatch(pattern, request)
            if match is not None:
                getattr(self, name)(**match.groupdict())
                return
        self.send({"error": f"no such place: {request}"}, 404)

    def send(self, value: Any, status: int = 200, **headers: str) -> None:
        self.content(json.dumps(value).encode(), status, **{"Content-Type": "application/json", **headers})

    def content(self, data: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def file(self, data: bytes, **headers: str) -> None:
        """Send a file, or the range of it that was asked for, with what goes wrong."""
        trouble = self.trouble
        wanted = self.headers.get("Range")
        first, last, status = 0, len(data) - 1, 200
        if wanted and not (trouble and trouble.ignore_range):
            start, end = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()  # type: ignore[union-attr]
            first, last, status = int(start), min(int(end or len(data)), len(data) - 1), 206
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        part = data[first : last + 1]
        if trouble and trouble.corrupt:
            part = bytes(255 - byte for byte in part)
        if trouble is None or trouble.drop_after is None:
            self.content(part, status, **headers)
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(part)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(part[: trouble.drop_after])
        self.wfile.flush()
        if trouble.hold is not None:
            trouble.hold.wait(120)
        self.close_connection = True

    def repo(self, kind: str, repo: str) -> dict[str, bytes] | None:
        """Return a repository, or answer that there is none."""
        found = self.hub.repos.get(f"{kind}/{repo}")
        if found is None:
            self.send({"error": "no", "Code": 10010205001, "Message": "no"}, 404, **{"X-Error-Code": "RepoNotFound"})
        return found

    # Hugging Face

    def hf_info(self, kind: str, repo: str, revision: str | None = None) -> None:
        if self.repo(kind, repo) is None:
            return
        if (revision or "main") not in self.hub.revisions:
            self.send({"error": "no"}, 404, **{"X-Error-Code": "RevisionNotFound"})
            return
        self.send({"id": repo, "sha": COMMIT, "siblings": [], "tags": [], "private": False})

    def hf_tree(self, kind: str, repo: str, revision: str) -> None:
        found = self.repo(kind, repo)
        if found is None:
            return
        entries = []
        for path, content in found.items():
            lfs = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
            entry = {"type": "file", "path": path, "size": len(content), "oid": git_sha1(content)}
            entries.append({**entry, "lfs": lfs} if is_lfs(path, content) else entry)
        self.send(entries)

    def hf_resolve(self, repo: str, path: str, kind: str | None = None) -> None:
        found = self.repo("datasets" if kind else "models", repo)
        if found is None:
            return
        content = found[path]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{git_sha1(content)}"', "Accept-Ranges": "bytes"}
        if not is_lfs(path, content):
            self.file(content, **headers)
            return
        self.hub.blobs[sha256(content)] = content
        linked = {"X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
        self.content(b"", 302, Location=f"{self.hub.storage}/storage/{sha256(content)}", **headers, **linked)

    def storage(self, oid: str) -> None:
        self.file(self.hub.blobs[oid], **{"ETag": f'"{oid}"', "X-Linked-ETag": f'"{oid}"'})

    def hf_create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'user'}/{asked['name']}" if "/" not in asked["name"] else asked["name"]
        key = f"models/{name}"
        if asked.get("visibility") == "private" or asked.get("private"):
            self.hub.private.add(key)
        status = 409 if key in self.hub.repos else 200
        self.hub.repos.setdefault(key, {})
        self.send({"url": f"{self.hub.url}/{name}", "id": name}, status)

    def hf_preupload(self, repo: str) -> None:
        files = json.loads(self.body)["files"]
        self.send(
            {
                "files": [
                    {
                        "path": each["path"],
                        "uploadMode": "lfs" if is_lfs(each["path"], b"0" * each["size"]) else "regular",
                        "shouldIgnore": False,
                    }
                    for each in files
                ]
            }
        )

    def hf_batch(self, repo: str) -> None:
        objects = json.loads(self.body)["objects"]
        self.send(
            {
                "transfer": "basic",
                "objects": [
                    {**each, "actions": {"upload": {"href": f"{self.hub.url}/blob/{each['oid']}"}}} for each in objects
                ],
            }
        )

    def put_blob(self, oid: str) -> None:
        self.hub.blobs[oid] = self.body
        self.send({})

    def hf_commit(self, repo: str) -> None:
        found = self.repo("models", repo)
        if found is None:
            return
        for line in self.body.splitlines():
            each = json.loads(line)
            value = each["value"]
            if each["key"] == "file":
                found[value["path"]] = base64.b64decode(value["content"])
            elif each["key"] == "lfsFile":
                found[value["path"]] = self.hub.blobs[value["oid"]]
        self.send({"commitOid": COMMIT, "commitUrl": f"{self.hub.url}/{repo}/commit/{COMMIT}"})

    def fine(self) -> None:
        self.send({})

    # ModelScope

    def ms_files(self, kind: str, repo: str) -> None:
        history = self.hub.histories.get(f"{kind}/{repo}")
        if history is not None and self.ms_shown(kind, repo):
            self.send({"Code": 200, "Success": True, "Data": history.tree(self.query)})
        if history is not None:
            return
        found = self.repo(kind, repo)
        if found is None:
            return
        known = self.query.get("Revision", "master") in ("master", COMMIT)
        entries = [
            {"Path": path, "Name": path.rpartition("/")[2], "Type": "blob", "Size": len(data), "Sha256": sha256(data)}
            for path, data in found.items()
        ]
        self.send({"Code": 200, "Success": True, "Data": {"Files": entries if known else None}})

    def ms_shown(self, kind: str, repo: str) -> bool:
        """Return whether a repository is shown to who asks, or answer that there is none, as the hub does."""
        wanted = self.hub.tokens.get(f"{kind}/{repo}")
        if wanted is None or self.headers.get("Authorization") == f"Bearer {wanted}":
            return True
        self.send({"Code": 10010205001, "Success": False, "Message": "no"}, 404)
        return False

    def ms_of_history(self, history: History, path: str) -> None:
        """Send a file of a dataset: large ones from elsewhere, where Authorization must not follow."""
        commit = history.at(self.query.get("Revision", "master"))
        content = None if commit is None else commit.files.get(path)
        if content is None:
            self.send({"Code": 10010205001, "Success": False, "Message": "no"}, 404)
        elif is_lfs(path, content):
            self.hub.blobs[sha256(content)] = content
            self.content(b"", 302, Location=f"{self.hub.storage}/storage/{sha256(content)}?Signature=of-the-storage")
        else:
            self.file(content)

    def ms_file(self, kind: str, repo: str, path: str) -> None:
        history = self.hub.histories.get(f"{kind}/{repo}")
        if history is not None:
            if self.ms_shown(kind, repo):
                self.ms_of_history(history, path)
            return
        found = self.repo(kind, repo)
        if found is not None:
            self.file(found[path])

    def ms_create(self) -> None:
        asked = json.loads(self.body)
        key = f"models/{asked['Path']}/{asked['Name']}"
        if key in self.hub.repos:
            self.send({"Code": 10010101001, "Success": False, "Message": "exists"}, 400)
            return
        self.hub.repos[key] = {}
        if asked.get("Visibility") == 1:
            self.hub.private.add(key)
        self.send({"Code": 200, "Success": True, "Data": {"Id": 1, **asked}})

    def ms_batch(self, repo: str) -> None:
        objects = json.loads(self.body)["objects"]
        actions = [
            {"oid": each["oid"], "actions": {"upload": {"href": f"{self.hub.url}/blob/{each['oid']}"}}}
            for each in objects
        ]
        self.send({"Code": 200, "Success": True, "Data": {"objects": actions}})

    def ms_commit(self, repo: str) -> None:
        found = self.repo("models", repo)
        if found is None:
            return
        for action in json.loads(self.body)["actions"]:
            lfs = action["type"] == "lfs"
            found[action["path"]] = self.hub.blobs[action["sha256"]] if lfs else base64.b64decode(action["content"])
        self.send({"Code": 200, "Success": True, "Data": {"oid": COMMIT}})


REPO = r"(?P<repo>[^/]+/[^/]+)"
KIND = r"(?P<kind>models|datasets)"
ROUTES = [
    (rf"GET /api/v1/{KIND}/{REPO}/repo/(?:files|tree)", "ms_files"),
    (rf"GET /api/v1/{KIND}/{REPO}/repo\?(?P<path>.+)", "ms_file"),
    (r"POST /api/v1/models", "ms_create"),
    (rf"POST /api/v1/repos/models/{REPO}/info/lfs/objects/batch", "ms_batch"),
    (rf"POST /api/v1/repos/models/{REPO}/commit/.+", "ms_commit"),
    (rf"GET /api/{KIND}/{REPO}(?:/revision/(?P<revision>.+))?", "hf_info"),
    (rf"GET /api/{KIND}/{REPO}/tree/(?P<revision>.+)", "hf_tree"),
    (rf"(?:GET|HEAD) /(?P<kind>datasets/)?{REPO}/resolve/[^/]+/(?P<path>.+)", "hf_resolve"),
    (r"GET /storage/(?P<oid>.+)", "storage"),
    (r"POST /api/repos/create", "hf_create"),
    (r"POST /api/validate-yaml", "fine"),
    (rf"POST /api/models/{REPO}/preupload/.+", "hf_preupload"),
    (rf"POST /api/models/{REPO}/branch/.+", "fine"),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", "hf_batch"),
    (r"PUT /blob/(?P<oid>.+)", "put_blob"),
    (rf"POST /api/models/{REPO}/commit/.+", "hf_commit"),
]
