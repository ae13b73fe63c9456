"""Write a cache at an address: each shard is uploaded whole, the manifest last, and nothing of others is touched.

A shard is first a local copy, within the bounds of all copies, so that a run on this machine need not fetch it again.
Commands keep out of one another's way by objects in `.workers`, as those in a folder do; see dsctl_core.remote.leases.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dsctl_core.cache.folder import GROUP, SHARD, SKIPPED_FILE, WORKERS, busy
from dsctl_core.cache.manifest import INDEX_FILE, MANIFEST_FILE, Manifest, read_manifest_file
from dsctl_core.cache.output import CacheOutput
from dsctl_core.cache.shards import FOLDER, SUFFIX, Part, packed, parts_in, read_parts
from dsctl_core.errors import DsctlError
from dsctl_core.files.leases import LEASE, NOTE, WORKER
from dsctl_core.files.safetensors import header_in, header_length
from dsctl_core.remote.address import address_of
from dsctl_core.remote.errors import RemoteChanged, RemoteError, RemoteExists, RemoteMissing
from dsctl_core.remote.leases import PROBE, RemoteWorker, unshared
from dsctl_core.remote.local import Opener, fill, local_copies
from dsctl_core.remote.store import Entry, Remote

ALONE = "0" * 16  # the group of a command that shares nothing
UPLOADS = 2  # shards that are uploaded while the next are encoded
READERS = 16  # threads that read headers
HEAD = 64 * 2**10  # bytes that are asked for in place of a header, whose length is not known yet
TRIES = 5  # to write a file that other workers write, too
OF_WORKERS = "|".join(map(re.escape, (WORKER, LEASE, NOTE, PROBE)))
WRITTEN = re.compile(rf"{FOLDER}/{SHARD}|{re.escape(WORKERS)}/{GROUP}/[0-9a-f]+({OF_WORKERS})")
# How the files begin that `dsctl cache` writes; what else has one of these names is of another program.
BEGINNINGS = {INDEX_FILE: b'{"entries":[', SKIPPED_FILE: b'{"row":', MANIFEST_FILE: b'{\n  "recipe": {'}


class RemoteOutput(CacheOutput):
    """The cache at an address."""

    far = 5.0

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.address = address_of(path)
        self.remote = Remote(self.address)
        self._parts: dict[str, dict[str, int]] = {}  # the bytes of the tensors of each part, of the shards looked at
        self._uploads: deque[Future[None]] = deque()
        self._threads: ThreadPoolExecutor | None = None

    def require_ours(self) -> None:
        """Raise unless nothing is at the address, or a cache of ours."""
        if not self.remote.writable:
            raise RemoteError(
                f"{self.address} cannot be written to: a cache is written to a folder, s3:// or gs://",
                hint="give another --output-path",
            )
        if self.is_whole():
            return
        for entry in self.remote.list():
            ours = self._is_own(entry.name) if entry.name in BEGINNINGS else WRITTEN.fullmatch(entry.name) is not None
            if not ours:
                raise DsctlError(
                    f"{self.address} is not empty and holds no cache: `dsctl cache` did not write {entry.name} there",
                    hint="give another --output-path",
                )

    def _is_own(self, name: str) -> bool:
        """Return whether a file, if it is there, begins as such a file of ours does."""
        beginning, entry = BEGINNINGS[name], self.remote.stat(name)
        return entry is None or self.remote.read(entry, 0, min(len(beginning), entry.size)) == beginning

    def require_sharing(self) -> None:
        """Raise RemoteError for a store without writes on a condition."""
        if not self.remote.conditional:
            raise unshared(self.address)

    @contextmanager
    def prepared(self, *, first: bool) -> Iterator[None]:
        """End all uploads with the block, so that none goes on after it."""
        try:
            yield
        finally:
            if self._threads is not None:
                self._threads.shutdown(cancel_futures=True)
                self._threads = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Show that this command writes here, where the store can tell when it was last heard of."""
        if not self.remote.conditional:
            yield
            return
        with RemoteWorker(self.remote, WORKERS, ALONE, sharing=False) as worker:
            if self._others(worker):
                raise self._busy()
            yield

    @contextmanager
    def joined(self, group: str, patience: float) -> Iterator[RemoteWorker]:
        """Be one of the workers of `group`. Raises RemoteError for a store that cannot write on a condition."""
        until = time.monotonic() + patience
        while True:
            with ExitStack() as stack:
                worker = stack.enter_context(RemoteWorker(self.remote, WORKERS, group))
                others = self._others(worker)
                if not others - {group}:
                    stack.pop_all()
                    break
            if time.monotonic() > until:
                raise self._busy()
            time.sleep(random.SystemRandom().uniform(0.05, 0.2))  # those that were started together must differ
        try:
            if not others:
                worker.forget_notes()
            yield worker
        finally:
            worker.__exit__()
            if not worker.others():  # of those that leave at once, the last one sees nobody
                worker.forget_notes()

    def _others(self, worker: RemoteWorker) -> set[str]:
        """Return the groups with other workers; what dead ones of other groups left is removed."""
        counts = worker.alive()
        for group, count in counts.items():
            if not count and group != worker.group:
                worker.forget_notes(group)
        return {group for group, count in counts.items() if count}

    def _busy(self) -> DsctlError:
        return busy(self.address)

    def manifest(self) -> Manifest:
        """Return the manifest that is at the address now."""
        for _ in range(TRIES):
            entry = self.remote.stat(MANIFEST_FILE)
            if entry is None:
                break
            with suppress(RemoteChanged), local_copies().held(self.remote, entry) as copy:  # others write it, too
                return read_manifest_file(self.path / MANIFEST_FILE, copy)
        raise DsctlError(f"{self.address} has no {MANIFEST_FILE}", hint="run the same `dsctl cache` command again")

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each shard, by name, sorted."""
        return {entry.name: entry.size for entry in self._shards()}

    def versions(self) -> set[tuple[str, Hashable]]:
        """Return (name, version) of each shard."""
        return {(entry.name, entry.version) for entry in self._shards()}

    def _shards(self) -> list[Entry]:
        found = (each._replace(name=each.name.removeprefix(f"{FOLDER}/")) for each in self.remote.list(FOLDER))
        return sorted(each for each in found if re.fullmatch(SHARD, each.name))

    def examined(self, names: Iterable[str]) -> Iterator[tuple[str, DsctlError | None]]:
        """Yield each shard with what is wrong with it, or None: whether it is whole, by its header.

        Its bytes are compared with its checksum where they are fetched, to be trained from.
        """
        wanted = set(names)
        entries = [each for each in self._shards() if each.name in wanted] if wanted else []

        def outcome(entry: Entry) -> DsctlError | None:
            try:
                self._look(entry)
            except RemoteError:
                raise
            except DsctlError as error:
                return error
            return None

        with ThreadPoolExecutor(READERS) as threads:
            yield from zip((each.name for each in entries), threads.map(outcome, entries), strict=True)

    def keys(self, names: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
        """Yield each shard with the keys of its parts."""
        for name, parts in self.tensor_bytes(names):
            yield name, list(parts)

    def tensor_bytes(self, names: Iterable[str]) -> Iterator[tuple[str, dict[str, int]]]:
        """Yield each shard with the bytes of the tensors of its parts, by key."""
        wanted = list(names)
        for _, error in self.examined(name for name in wanted if name not in self._parts):
            if error is not None:
                raise error
        gone = next((name for name in wanted if name not in self._parts), None)
        if gone is not None:
            raise DsctlError(
                f"{self.address}/{FOLDER}/{gone} is gone", hint="let nothing else write there, and run it again"
            )
        yield from ((name, self._parts[name]) for name in wanted)

    def _look(self, entry: Entry) -> None:
        """Read the header of a shard."""
        file, where = entry._replace(name=f"{FOLDER}/{entry.name}"), f"{self.address}/{FOLDER}/{entry.name}"
        self._parts.pop(entry.name, None)
        head = self.remote.read(file, 0, min(HEAD, entry.size))
        end = 8 + header_length(head[:8], entry.size, where)
        if end > len(head):
            head += self.remote.read(file, len(head), end)
        self._parts[entry.name] = parts_in(header_in(head, entry.size, where), where)

    def read(self, name: str, keys: Collection[str]) -> Mapping[str, Part]:
        """Return some parts of a shard, by key."""
        size = self.sizes()[name]

        def fetch(new: Opener) -> None:
            with new(size) as stream:
                self.remote.pull(f"{FOLDER}/{name}", stream.write)

        with local_copies().made(name, SUFFIX, fetch) as copy:
            return read_parts(copy, keys)

    def write(self, parts: Mapping[str, Part]) -> str:
        """Begin to upload a shard; wait for the one before the last, so that their number is bounded."""
        name, content = packed(parts)
        self._parts[name] = {key: sum(each.nbytes for each in part.tensors) for key, part in parts.items()}
        while len(self._uploads) >= UPLOADS:
            self._uploads.popleft().result()
        if self._threads is None:
            self._threads = ThreadPoolExecutor(UPLOADS, thread_name_prefix="uploads")
        stack = ExitStack()
        held = local_copies().made(name, SUFFIX, lambda new: fill(new, content))
        copy = stack.enter_context(held)  # until it is uploaded, nobody removes it
        self._uploads.append(self._threads.submit(self._upload, name, copy, stack))
        return name

    def flush(self) -> None:
        """Wait until all shards that were written are there."""
        while self._uploads:
            self._uploads.popleft().result()

    def _upload(self, name: str, copy: Path, held: ExitStack) -> None:
        with held:
            file = f"{FOLDER}/{name}"
            for _ in range(TRIES):
                try:
                    self.remote.put(file, copy, if_absent=True)
                except RemoteExists:
                    if self._is_right(name, copy):
                        return
                else:
                    return
        raise _strange(f"{self.address}/{file}")

    def _is_right(self, name: str, copy: Path) -> bool:
        """Return whether a shard is there, whole; remove one that is not, and is of this cache."""
        entry = self.remote.stat(f"{FOLDER}/{name}")
        if entry is None:
            return False
        if entry.size == copy.stat().st_size:
            try:
                self._look(entry._replace(name=name))
            except RemoteError:
                raise
            except DsctlError:
                pass
            else:
                return True
        if name not in self.named():
            raise _strange(f"{self.address}/{FOLDER}/{name}")
        self.remote.delete(f"{FOLDER}/{name}", entry.version if self.remote.conditional else None)
        return False

    def remove(self, names: Collection[str], named: Collection[str]) -> None:
        """Remove shards that the manifest `named`, and those whose content has the checksum in their name."""
        for name in sorted(names):
            file, made = f"{FOLDER}/{name}", hashlib.sha256()
            if name not in named:
                self.remote.pull(file, made.update)
            if name in named or f"{made.hexdigest()}{SUFFIX}" == name:
                self.remote.delete(file)

    def write_skipped(self, text: str) -> None:
        """Write skipped.jsonl, or remove it."""
        if text:
            self._put(SKIPPED_FILE, text.encode())
        elif self.remote.stat(SKIPPED_FILE) is not None:
            self._require_own(SKIPPED_FILE)
            self.remote.delete(SKIPPED_FILE)

    def write_manifest(self, manifest: str, index: str) -> None:
        """Write index.json, then manifest.json; not where they are the same, for a run may be reading them."""
        self._put(INDEX_FILE, index.encode())
        self._put(MANIFEST_FILE, manifest.encode())

    def _put(self, name: str, content: bytes) -> None:
        """Write one of the files of a cache over the one that was looked at, or where there was none."""
        for _ in range(TRIES):
            entry = self.remote.stat(name)
            try:
                if entry is None:
                    self.remote.put(name, content, if_absent=True)
                    return
                if entry.size == len(content) and self.remote.read(entry) == content:
                    return
                self._require_own(name)
                self.remote.put(name, content, if_version=entry.version if self.remote.conditional else None)
            except (RemoteChanged, RemoteExists, RemoteMissing):  # another worker has written it, or removed it
                continue
            return
        raise self._busy()

    def _require_own(self, name: str) -> None:
        if not self._is_own(name):
            raise _strange(f"{self.address}/{name}")


def _strange(address: str) -> DsctlError:
    return DsctlError(
        f"{address} is there already, and `dsctl cache` did not write it", hint="remove it, or write elsewhere"
    )
