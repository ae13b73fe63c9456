"""Write a file while it is downloaded: continue a partial file, and compute the checksum at the same time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsctl_core.hub.remote import BLOCK, RemoteFile, new_digest

PARTS = "parts"  # the folder of partial files, in our records of a download folder


class Stopped(Exception):
    """The download was stopped."""


class Part:
    """A partial file, with the methods of a binary file that http_get of huggingface_hub calls.

    The checksum is computed in a second thread during the download. `advance` is called with the number of new bytes.
    When `stop` is set, the next chunk raises `Stopped`.
    """

    def __init__(self, path: Path, file: RemoteFile, advance: Callable[[int], None], stop: threading.Event) -> None:
        self.file, self.advance, self.stop = file, advance, stop
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.stat().st_size > file.size:
            path.unlink()
        self.stream = path.open("ab+")
        self.size = 0
        self._start_hashing()
        self.stream.seek(0)
        while data := self.stream.read(BLOCK):
            self._count(data)

    def write(self, data: bytes) -> int:
        """Append `data`; raise `Stopped` if the download is to stop."""
        if self.stop.is_set():
            raise Stopped
        self.stream.write(data)
        self._count(data)
        return len(data)

    def tell(self) -> int:
        """Return the number of bytes in the file."""
        return self.size

    def seek(self, offset: int, whence: int = 0) -> int:
        """Do nothing: http_get only seeks to the beginning, and then truncates."""
        return offset

    def truncate(self, size: int | None = None) -> int:
        """Remove all bytes: the server sends the file from the beginning."""
        self.advance(-self.size)
        self.stream.truncate(0)
        self.size = 0
        self._finish_hashing()
        self._start_hashing()
        return 0

    def close(self) -> str:
        """Close the file and return the checksum of all bytes."""
        self.stream.close()
        self._finish_hashing()
        return self.digest.hexdigest()

    def _count(self, data: bytes) -> None:
        self.size += len(data)
        self.queue.put(data)
        self.advance(len(data))

    def _start_hashing(self) -> None:
        self.digest: Any = new_digest(self.file)
        self.queue: queue.Queue[bytes | None] = queue.Queue(maxsize=4)
        self.thread = threading.Thread(target=self._hash, args=(self.queue, self.digest), daemon=True)
        self.thread.start()

    @staticmethod
    def _hash(source: queue.Queue[bytes | None], digest: Any) -> None:
        while (data := source.get()) is not None:
            digest.update(data)

    def _finish_hashing(self) -> None:
        self.queue.put(None)
        self.thread.join()
