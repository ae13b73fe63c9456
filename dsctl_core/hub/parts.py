"""A file that is being downloaded: what is there already counts, and its checksum is ready when it is."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsctl_core.hub.remote import BLOCK, RemoteFile, new_digest


class Stopped(Exception):
    """Somebody asked for the download to end."""


class Part:
    """The bytes of a file that have arrived so far, as much of a binary file as huggingface_hub's http_get needs.

    The checksum is computed in a thread of its own, beside the network. `stop` ends the download at the next chunk.
    """

    def __init__(self, path: Path, file: RemoteFile, advance: Callable[[int], None], stop: threading.Event) -> None:
        self.file, self.advance, self.stop = file, advance, stop
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.stat().st_size > file.size:
            path.unlink()
        self.stream = path.open("ab+")
        self.size = 0
        self._begin()
        self.stream.seek(0)
        while data := self.stream.read(BLOCK):
            self._count(data)

    def write(self, data: bytes) -> int:
        """Append `data`."""
        if self.stop.is_set():
            raise Stopped
        self.stream.write(data)
        self._count(data)
        return len(data)

    def tell(self) -> int:
        """Return how many bytes there are."""
        return self.size

    def seek(self, place: int, whence: int = 0) -> int:
        """Accept the only place that http_get goes back to: the beginning."""
        return place

    def truncate(self, size: int | None = None) -> int:
        """Forget everything: the server sends the file from its beginning."""
        self.advance(-self.size)
        self.stream.truncate(0)
        self.size = 0
        self._end()
        self._begin()
        return 0

    def close(self) -> str:
        """Finish, and return the checksum of all bytes."""
        self.stream.close()
        self._end()
        return self.digest.hexdigest()

    def _count(self, data: bytes) -> None:
        self.size += len(data)
        self.queue.put(data)
        self.advance(len(data))

    def _begin(self) -> None:
        self.digest: Any = new_digest(self.file)
        self.queue: queue.Queue[bytes | None] = queue.Queue(maxsize=4)
        self.thread = threading.Thread(target=self._hash, args=(self.queue, self.digest), daemon=True)
        self.thread.start()

    @staticmethod
    def _hash(source: queue.Queue[bytes | None], digest: Any) -> None:
        while (data := source.get()) is not None:
            digest.update(data)

    def _end(self) -> None:
        self.queue.put(None)
        self.thread.join()
