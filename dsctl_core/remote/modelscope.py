"""Read datasets of ModelScope, for which fsspec has no file system: page the tree of a repository, and read ranges.

The requests are those of its SDK, `GET /api/v1/datasets/OWNER/NAME/repo/tree` and `.../repo?FilePath=`. The version of
a file is its SHA-256 and the commit that wrote it, and at that commit it is read: of one version, whatever is pushed
meanwhile.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import fsspec
from fsspec.dircache import DirCache

from dsctl_core.errors import UsageError
from dsctl_core.files.json import decode_json
from dsctl_core.remote.backends import Backend, Found, Sink
from dsctl_core.remote.errors import CREDENTIALS, RemoteError, RemoteMissing, Short, changed

# Environment variables that the SDK reads when it is imported. By default a download may take at most an hour a file.
SETTINGS = {"MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT": str(30 * 24 * 3600), "TQDM_DISABLE": "1"}
SETTINGS["MODELSCOPE_DOWNLOAD_INTRA_CLOUD"] = "false"  # a request that is useful in the hub's own cloud only
PAGE = 200  # files of one request for a listing, as in the SDK: where there are fewer, it was the last one
DEFAULT = "master"  # the branch of an address without @revision
FRESH, FOLDERS = 60.0, 64  # seconds for which listings of single folders are kept, and how many
CONNECTIONS = 32
BLOCK = 2**15  # bytes that are handed on at a time: of a connection that is cut off, fewer are lost
COMMIT = re.compile(r"[0-9a-f]{40}")
RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
HOW = "write it as modelscope://datasets/OWNER/NAME/folder, or OWNER/NAME@REVISION"


def modelscope_hub() -> ModuleType:
    """Import the light SDK of ModelScope, quiet, and with downloads that may take long."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import modelscope_hub

    logging.getLogger("modelscope_hub").setLevel(logging.CRITICAL)
    return modelscope_hub


class Place(NamedTuple):
    """A path in a dataset: OWNER/NAME, the revision, the path, and the address of the root."""

    repository: str
    revision: str
    path: str
    root: str


def dataset_at(path: str) -> Place:
    """Return what a path such as `datasets/OWNER/NAME@REVISION/folder/file` is made of; raise UsageError for others.

    A branch with a slash in its name is written with %2F.
    """
    kind, owner, named, inside = (*path.removeprefix("modelscope://").split("/", 3), "", "", "")[:4]
    name, at, revision = named.partition("@")
    if kind != "datasets" or not owner or not name or "@" in owner or (at and not revision):
        raise UsageError(f"{path} is no dataset of ModelScope", hint=HOW)
    root = f"{kind}/{owner}/{named}"
    return Place(f"{owner}/{name}", unquote(revision) or DEFAULT, inside.strip("/"), root)


class ModelScopeFileSystem(fsspec.AbstractFileSystem):
    """The datasets of a ModelScope hub, read-only: those that anybody may read, or the token of the SDK.

    Its endpoint is MODELSCOPE_ENDPOINT, and the token MODELSCOPE_API_TOKEN or that of `modelscope login`. Its methods
    make one request or, for the listing of a folder, one for each page, without a retry of their own.
    """

    protocol = "modelscope"

    def __init__(self, timeout: float, **settings: Any) -> None:
        super().__init__(**settings)
        import requests

        config = modelscope_hub().HubConfig()
        self.endpoint, self.timeout = config.endpoint, timeout
        self._folders = DirCache(listings_expiry_time=FRESH, max_paths=FOLDERS)
        self._session = requests.Session()
        self._session.headers["Accept-Encoding"] = "identity"
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=CONNECTIONS))
        token = config.token
        if token:
            if not token.isascii() or not token.isprintable() or " " in token:  # an error of the client would show it
                raise UsageError(
                    "the token of ModelScope has a space, a line break or another character that none has",
                    hint="set MODELSCOPE_API_TOKEN to the token alone, or log in with `modelscope login`",
                )
            # The SDK sends both: some paths of the hub know only one. Neither follows a redirect to another host.
            self._session.headers["Authorization"] = f"Bearer {token}"
            self._session.cookies.set("m_session_id", token, domain=re.split("[/:]+", self.endpoint)[1], path="/")

    def pages(self, path: str, *, deep: bool) -> Iterator[Callable[[], list[dict[str, Any]]]]:
        """Yield requests, each of which returns what is next in a folder, or with `deep` also below it.

        The pages are of one commit where the hub names it; else RemoteChanged is raised where it changes meanwhile.
        """
        place = dataset_at(path)
        number, revision, first, ended = 1, place.revision, "", False

        def page() -> list[dict[str, Any]]:
            nonlocal number, revision, first, ended
            found, commit = self._tree(place, revision, number, deep=deep)
            if not found and revision != place.revision:  # the end, unless this hub takes no commit here
                found, commit = self._tree(place, place.revision, number, deep=deep)
                revision = place.revision if found else revision
            if number == 1:
                first, revision = commit, commit if COMMIT.fullmatch(commit) else revision
            elif found and not (commit.startswith(first) or first.startswith(commit)):
                raise changed(path)
            number, ended = number + 1, len(found) < PAGE
            return [_info(place.root, each, commit) for each in found]

        while not ended:
            yield page

    def _tree(self, place: Place, revision: str, number: int, *, deep: bool) -> tuple[list[dict[str, Any]], str]:
        """Return a page of what is in a folder, none where there is no such folder, and the commit, if that is known.

        Raises FileNotFoundError where there is no such dataset, or no such revision of it.
        """
        asked = {"Revision": revision, "Recursive": str(deep), "PageNumber": str(number), "PageSize": str(PAGE)}
        root = {"Root": place.path} if place.path else {}
        try:
            data = self._data(f"{place.repository}/repo/tree", {**asked, **root})
        except OSError as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status == 403 and number > 1:  # the hub does so now and then, while it gives the other pages
                raise Short("a page of the listing was refused, after others had been given") from error
            if status != 404 or (number > 1 and revision == place.revision):
                raise
            data = {}
        found = data.get("Files")
        if found is None:
            found = []
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise RemoteError(f"{self.endpoint} does not answer as ModelScope does", hint="check MODELSCOPE_ENDPOINT")
        if not found and number == 1:
            if not place.path:
                raise FileNotFoundError(place.root)  # an unknown revision has no files, with the status 200
            self._tree(place._replace(path=""), revision, 1, deep=False)
        return found, _commit(data, found)

    def _data(self, path: str, asked: dict[str, str]) -> dict[str, Any]:
        answer = self._ask(path, asked, {})
        try:
            content = decode_json(answer.content)
            if not isinstance(content, dict):
                raise ValueError("is no object")
        except ValueError as error:
            raise RemoteError(
                f"{self.endpoint} does not answer as ModelScope does", hint="check MODELSCOPE_ENDPOINT"
            ) from error
        if content.get("Success") is False or content.get("Code", 200) not in (200, "200", None):
            raise RemoteError(
                f"ModelScope refused to list {path.removesuffix('/repo/tree')}, with the code {content.get('Code')}",
                hint="check the address; if the dataset is private, set MODELSCOPE_API_TOKEN",
            )
        data = content.get("Data") or {}
        return data if isinstance(data, dict) else {"Files": data}  # the SDK takes either

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """Return what is in a folder; raise FileNotFoundError for one that is not there."""
        found = list(self._in_folder(path).values())
        if not found:
            raise FileNotFoundError(path)
        return found if detail else [each["name"] for each in found]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return what the listing of its folder has of a file, or that it is a folder; raise FileNotFoundError."""
        place = dataset_at(self._strip_protocol(path))
        if not place.path:
            return {"name": place.root, "size": 0, "type": "directory"}
        name = f"{place.root}/{place.path}"
        found = self._in_folder(name.rpartition("/")[0]).get(name)
        if found is None:
            raise FileNotFoundError(path)
        return found

    def _in_folder(self, path: str) -> dict[str, dict[str, Any]]:
        """Return what is in a folder, by name, as it was at most `FRESH` seconds ago."""
        path = self._strip_protocol(path)
        with suppress(KeyError):
            return self._folders[path]
        found = {info["name"]: info for page in self.pages(path, deep=False) for info in page()}
        self._folders[path] = found
        return found

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget the listings of single folders."""
        self._folders.clear()

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Return the bytes of a file from `start` to before `end`."""
        info, made = self.info(path), bytearray()
        self.pull(path, info["ETag"], info["size"], (start or 0, info["size"] if end is None else end), made.extend)
        return bytes(made)

    def pull(self, path: str, version: str, size: int, span: tuple[int, int], sink: Sink) -> None:
        """Hand a range of a file of `size` bytes, of the commit in `version`, to `sink`, as it comes."""
        place, (checksum, _, commit), (start, end) = dataset_at(path), version.partition("@"), span
        asked = {"Revision": commit or place.revision, "FilePath": place.path}
        with self._ask(f"{place.repository}/repo", asked, {"Range": f"bytes={start}-{end - 1}"}) as answer:
            linked = [each.headers.get("X-Linked-ETag", "").strip('"') for each in (*answer.history, answer)]
            if checksum and any(len(each) == len(checksum) and each != checksum for each in linked):
                raise changed(path)
            if answer.status_code == 206:
                span_given = RANGE.fullmatch(answer.headers.get("Content-Range", ""))
                if span_given is not None and (int(span_given[1]), int(span_given[2])) != (start, size):
                    raise changed(path)
                position = start
            elif int(answer.headers.get("Content-Length", size)) != size:
                raise changed(path)
            else:  # the whole file: the hub itself may know no ranges
                position = 0
            for block in answer.iter_content(BLOCK):
                wanted = block[max(start - position, 0) : max(end - position, 0)]
                position += len(block)
                if wanted:
                    sink(wanted)

    def _ask(self, path: str, asked: dict[str, str], headers: dict[str, str]) -> Any:
        import requests

        url, wait = f"{self.endpoint}/api/v1/datasets/{path}", self.timeout
        try:
            answer = self._session.get(url, params=asked, headers=headers, timeout=wait, stream=bool(headers))
        except requests.ConnectionError as error:
            if type(error) not in (requests.ConnectionError, requests.ConnectTimeout) or error.request is None:
                raise  # for its text: certificates, proxies
            raise ConnectionError(f"no connection to {urlsplit(str(error.request.url)).netloc}") from error
        try:
            answer.raise_for_status()
        except BaseException:
            answer.close()
            raise
        return answer


def _commit(data: dict[str, Any], found: list[dict[str, Any]]) -> str:
    """Return the commit that a page is of: whole, or abbreviated, or "" where the hub does not say.

    The hub may give eight digits alone; the files that this commit wrote have all of them.
    """
    latest = data.get("LatestCommitter")
    if not isinstance(latest, dict):
        return ""
    if COMMIT.fullmatch(str(latest.get("Id"))):
        return str(latest["Id"])
    short = latest.get("ShortId")
    if not isinstance(short, str) or not short:
        return ""
    revisions = (str(each.get("Revision")) for each in found)
    return next((each for each in revisions if COMMIT.fullmatch(each) and each.startswith(short)), short)


def _info(root: str, entry: dict[str, Any], commit: str) -> dict[str, Any]:
    path, size = entry.get("Path"), entry.get("Size")
    if not isinstance(path, str) or not path:
        raise RemoteError(f"the listing of modelscope://{root} has a file without a path", hint="check the dataset")
    name = f"{root}/{path}"
    if entry.get("Type") == "tree":
        return {"name": name, "size": 0, "type": "directory"}
    written = entry.get("Revision")
    of = next((each for each in (written, commit) if isinstance(each, str) and COMMIT.fullmatch(each)), "")
    checksum = entry.get("Sha256")
    version = f"{checksum if isinstance(checksum, str) else ''}@{of}"
    whole = isinstance(size, int) and not isinstance(size, bool) and size >= 0
    return {"name": name, "size": size if whole else None, "type": "file", "ETag": version.rstrip("@")}


class ModelScopeBackend(Backend):
    """The datasets of ModelScope."""

    page = PAGE

    def _opened(self, address: str) -> ModelScopeFileSystem:
        return ModelScopeFileSystem(self.patience.timeout, skip_instance_cache=True)

    def pages(self, prefix: str) -> Iterator[Callable[[], list[Found]]]:
        """Yield requests, of `PAGE` files and folders each."""

        def listed(page: Callable[[], list[dict[str, Any]]]) -> list[Found]:
            try:
                found = [self._found(info) for info in page() if info["type"] == "file"]
            except FileNotFoundError as error:
                raise RemoteMissing(
                    f"{prefix} does not exist, or has no files",
                    hint=f"check OWNER/NAME and the revision (`{DEFAULT}` is usual); "
                    f"if it is private, {CREDENTIALS['modelscope']}",
                ) from error
            return [each for each in found if each.address.startswith(f"{prefix}/")]

        for page in self.fs.pages(prefix, deep=True):
            yield partial(listed, page)

    def pull(self, file: Found, start: int, end: int, sink: Sink) -> None:
        """Hand on a range, at the commit that wrote the file."""
        self.fs.pull(file.address, file.version, file.size, (start, end), sink)

    def keeps_version(self, file: Found) -> bool:
        """Return True for what was read at a commit; else ask for the listing of the folder anew."""
        if "@" in file.version:
            return True
        self.fs.invalidate_cache()
        return super().keeps_version(file)
