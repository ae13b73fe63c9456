"""Remember what is known of the pictures and clips of a dataset: each is opened once in a start, or never if unchanged.

A file counts as unchanged while its path, size, time of change (of content and of status) and inode are; a remote one
while its address, size and version (ETag) are. A local one that was changed shortly before it was read is not
remembered, as a second change could leave the same times.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat as stat_module
import struct
import time
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from dsctl_core.data.facts import Survey
from dsctl_core.data.file_store import FileStore, Record, remove_unused, store_path
from dsctl_core.data.images import picture_size, plain_size, refused_bombs
from dsctl_core.data.problems import DataError
from dsctl_core.data.video import is_clip, survey_clip
from dsctl_core.files.digest import SAMPLE, SAMPLES, digest_stream, sample_of
from dsctl_core.files.json import decode_json
from dsctl_core.progress import NoProgress, Progress
from dsctl_core.remote import anywhere
from dsctl_core.remote.address import place_of

CHUNK = 2000  # files that are looked up, read and put at a time
TASK = 32  # files that a thread reads in one go
WAITING = 3  # times the work of looking at a file, from which on waiting for files is worth threads
# Seconds within which a file system may give two changes one time: most of them, and those that count whole seconds.
FINE, COARSE = 0.05, 2.5
STAT = struct.Struct("<4q")
END = struct.Struct("<d")
MOST = 2**63 - 1


class KnownFiles:
    """The files of the dataset folder `base_path`, after `read` was called with them.

    Args:
        base_path: The folder.
        clips: Whether videos and GIFs are read as clips, with the times of their frames; else only pictures are read.
        remember: Whether to use, and to fill, what the user's cache folder has of this dataset.
        recheck: Whether to read every file again, whatever is remembered of it.
    """

    def __init__(self, base_path: Path, *, clips: bool = False, remember: bool = False, recheck: bool = False) -> None:
        self.clips = clips
        self.base, self.remember, self.recheck = str(base_path), remember, recheck
        self._inside = str(base_path / "_")[:-1]
        self._session = os.urandom(8)
        self._store: FileStore | None = None
        self._most_chunks = 0
        self._forget()

    def _forget(self) -> None:
        self._hashes, self._widths, self._heights = array("q"), array("I"), array("I")
        self.states = ""  # a hash of the states of all files that were read, in order
        self.done = 0  # 1 after the files were read, 2 if they were hashed whole, too
        self.settled = True  # whether none of them has just been changed

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what cannot be sent to another process, and what that would not ask for."""
        return {"base": self.base}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(Path(state["base"]))  # type: ignore[misc]

    def size(self, path: str | Path) -> tuple[int, int] | None:
        """Return the upright (width, height) of a picture that was read; None if it has to be read for it."""
        place = None if self._is_clip(str(path)) else self._place(str(path))
        return None if place is None else (self._widths[place], self._heights[place])

    def survey(self, path: str | Path) -> Survey | None:
        """Return the survey of a clip that was read; None if it has to be read for it."""
        text = str(path)
        if not self._is_clip(text) or self._store is None or self._place(text) is None:
            return None
        record = self._store.find([self._name(text)]).get(self._name(text))
        if record is None or record.frames is None or record.stat != state_of(text):
            return None  # it has been changed since
        times, end = unpack_times(record.frames)
        return Survey(times, end, (record.width, record.height))

    def _is_clip(self, path: str) -> bool:
        return self.clips and is_clip(path)

    def has(self, path: str) -> bool:
        """Return whether the file at `path` was read and found to be whole."""
        return self._place(path) is not None

    def _place(self, path: str) -> int | None:
        wanted = hash(path)  # of 64 bits: that two of a billion paths have one is less likely than a broken disk
        place = bisect_left(self._hashes, wanted)
        return place if place < len(self._hashes) and self._hashes[place] == wanted else None

    def read(self, paths: Iterable[str], count: int, progress: Progress | None = None, *, whole: bool = False) -> None:
        """Find out about files: from what is remembered of those that are unchanged, else by opening them, in threads.

        Args:
            paths: The paths, as `size` will be asked for them. A file that cannot be used stays unknown: whoever needs
                it opens it, and gets the error.
            count: How many there are, for the display.
            progress: Where to report.
            whole: Whether to know a digest of all bytes, too.
        """
        progress, store = progress or NoProgress(), self._opened(progress or NoProgress())
        self._forget()
        states = hashlib.sha256()
        progress.start("Looking at the files", count, unit="file")
        waiting, self._most_chunks = iter(paths), 64 + 4 * (count // CHUNK)
        with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool, refused_bombs():
            while chunk := list(islice(waiting, CHUNK)):
                text = "\0".join(chunk)
                states.update(text.encode("utf-8", "surrogatepass"))
                states.update(b"".join(self._chunk(chunk, text, store, pool, whole)))
                progress.advance(len(chunk))
        progress.finish()
        self.states, self.done = states.hexdigest(), 1 + whole
        self._sort()

    def _opened(self, progress: Progress) -> FileStore:
        if self._store is None:
            path = store_path(Path(self.base)) if self.remember else None
            if path is not None:
                remove_unused(path.parent)
            self._store = FileStore(path, progress.note)
            if self.recheck:
                self._store.clear()
        return self._store

    def _chunk(
        self, paths: list[str], text: str, store: FileStore, pool: ThreadPoolExecutor, whole: bool
    ) -> Iterator[bytes]:
        """Learn what there is to know of `paths`, joined to one `text`, and yield the state of each."""
        states = list(map(state_of if anywhere.may_be_apart(text) else _local_state, paths))
        joined, key = b"".join(state or b"" for state in states), self._key_of(text, whole)
        kept = store.chunk(key)
        if kept is not None and kept[0] == joined and len(joined) == STAT.size * len(paths):
            self._hashes.extend(map(hash, paths))
            sizes = array("I", kept[1])
            self._widths += sizes[: len(paths)]
            self._heights += sizes[len(paths) :]
            return (state or b"?" for state in states)
        names = [self._name(path) for path in paths]
        records = store.find(list(dict.fromkeys(names)))
        found, unknown = dict[str, Record](), list[str]()
        for path, name, state in zip(paths, names, states, strict=True):
            record = records.get(name)
            if record is not None and record.stat == state and self._serves(record, whole):
                found[path] = record
            elif state is not None:
                unknown.append(path)
        if unknown:
            todo = list(dict.fromkeys(unknown))
            made = zip(todo, self._looks(todo, pool, whole), strict=True)
            new = {path: record for path, record in made if record is not None}
            store.put(new.values())
            found |= new
            states = [new[path].stat if path in new else state for path, state in zip(paths, states, strict=True)]
        for path, record in found.items():
            self._know(path, record)
        own = [found.get(path) for path in paths]
        if all(each is not None and each.session is None for each in own):
            sizes = array("I", [each.width for each in own if each] + [each.height for each in own if each])
            store.keep_chunk(key, b"".join(state or b"" for state in states), sizes.tobytes(), self._most_chunks)
        return (state or b"?" for state in states)

    def _key_of(self, paths: str, whole: bool) -> bytes:
        """Return a digest of what is asked about `paths`, by which the states and sizes of pictures are kept."""
        text = f"{paths}\0whole {whole} clips {self.clips}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    def _serves(self, record: Record, whole: bool) -> bool:
        # A video that was read as a clip is no picture, and of a GIF that was read as a picture the times are missing.
        read_so = (record.frames is not None) == self._is_clip(record.name)
        return read_so and (record.whole is not None or not whole) and record.session in (None, self._session)

    def _looks(self, paths: list[str], pool: ThreadPoolExecutor, whole: bool) -> Iterator[Record | None]:
        """Look at files: in threads where they have to be waited for, as on a network; else here, which is cheaper."""
        began, busy = time.perf_counter(), time.thread_time()
        yield from [self._look(path, whole) for path in paths[:TASK]]
        waited = time.perf_counter() - began > WAITING * (time.thread_time() - busy)
        tasks = [paths[first : first + TASK] for first in range(TASK, len(paths), TASK)]
        done = (pool.map if waited else map)(lambda task: [self._look(path, whole) for path in task], tasks)
        yield from (record for task in done for record in task)

    def _look(self, path: str, whole: bool) -> Record | None:
        """Open a file once, and return all that is to be known of it; None if it cannot be used."""
        try:
            apart = anywhere.is_apart(path)
            state = state_of(path) if apart else None  # a remote file that is read keeps its version until the end
            # A Path for each of millions costs more than the rest.
            with anywhere.opened(Path(path)) if apart else open(path, "rb") as stream:  # noqa: PTH123
                status = None if apart else os.fstat(stream.fileno())
                file_bytes = stream.seek(0, os.SEEK_END) if status is None else status.st_size
                stream.seek(0)
                # A small file is read in one go.
                source: BinaryIO = BytesIO(stream.read()) if file_bytes <= SAMPLE * SAMPLES else stream
                frames = None
                if self._is_clip(path):
                    found = survey_clip(Path(path), source)
                    size, frames = found.size, pack_times(found.times, found.end)
                else:
                    size = plain_size(path, source) or _opened_size(path, source)
                sample = bytes.fromhex(sample_of(source, file_bytes))
                digest = bytes.fromhex(digest_stream(source)) if whole else None
        except (DataError, OSError):
            return None
        return self.record(path, state if apart else status, file_bytes, size, sample, digest, frames=frames)

    def record(
        self,
        path: str,
        state: os.stat_result | bytes | None,
        file_bytes: int,
        size: tuple[int, int],
        sample: bytes | None,
        whole: bytes | None,
        decoded: str | None = None,
        frames: bytes | None = None,
    ) -> Record:
        """Return the record of a file; it is for this process alone if the file has just been changed.

        `state` is that of a remote file, which has a version, or the status of a local one.
        """
        assert state is not None
        own = (*size, file_bytes, sample, whole, decoded, frames)
        if isinstance(state, bytes):
            return Record(self._name(path), state, None, *own)
        session = self._session if is_fresh(state) else None
        return Record(self._name(path), state_from(state), session, *own)

    def _name(self, path: str) -> str:
        if path.startswith(self._inside) and self._inside:
            return path[len(self._inside) :]
        return place_of(Path(path))

    def _know(self, path: str, record: Record) -> None:
        self._hashes.append(hash(path))
        self._heights.append(record.height)
        if record.session is not None:
            self.settled = False
        self._widths.append(record.width)

    def _sort(self) -> None:
        """Order what is known by the hash of the path, which `size` looks for."""
        import numpy as np

        order = np.argsort(np.frombuffer(self._hashes, np.int64), kind="stable")
        columns = ((self._hashes, np.int64), (self._widths, np.uintc), (self._heights, np.uintc))
        self._hashes, self._widths, self._heights = (
            array(column.typecode, np.frombuffer(column, kind)[order].tobytes()) for column, kind in columns
        )

    def records(self, paths: Sequence[str]) -> dict[str, Record]:
        """Return the records of those of `paths` that were read, by path."""
        names = {path: self._name(path) for path in dict.fromkeys(paths) if self._place(path) is not None}
        found = {} if self._store is None else self._store.find(list(names.values()))
        return {path: found[name] for path, name in names.items() if name in found}

    def current(self, paths: Sequence[str], progress: Progress | None = None) -> Iterator[tuple[str, Record]]:
        """Yield those of `paths` that are as they were when something was found out about them, with their records."""
        store = self._opened(progress or NoProgress())
        for first in range(0, len(paths), CHUNK):
            names = {path: self._name(path) for path in paths[first : first + CHUNK]}
            records = store.find(list(dict.fromkeys(names.values())))
            for path, name in names.items():
                record = records.get(name)
                if record is not None and record.stat == state_of(path) and self._serves(record, False):
                    yield path, record

    def put(self, records: Iterable[Record]) -> None:
        """Keep records of files."""
        self._opened(NoProgress()).put(records)

    def result(self, key: str) -> Any:
        """Return what was kept about the whole dataset under `key`; None if nothing was, or it is not to be used."""
        text = None if self._store is None or self.recheck else self._store.result(key)
        return None if text is None else decode_json(text)

    def keep(self, key: str, value: Any) -> None:
        """Keep what was found out about the whole dataset, unless a file of it has just been changed."""
        if self._store is not None and self.settled:
            self._store.keep(key, json.dumps(value))


def _opened_size(path: str, stream: BinaryIO) -> tuple[int, int]:
    stream.seek(0)
    return picture_size(Path(path), stream)


def state_of(path: str) -> bytes | None:
    """Return what tells the state of a file from its states before and after a change; None if there is no file."""
    if anywhere.is_apart(path):
        found = anywhere.state_of(path)
        return None if found is None else found[1]
    return _local_state(path)


def _local_state(path: str) -> bytes | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - as above
    except (OSError, ValueError):
        return None
    return state_from(status) if stat_module.S_ISREG(status.st_mode) else None


def state_from(status: os.stat_result) -> bytes:
    """Return the state of a file: its size, the times of its last changes, of content and of status, and its inode."""
    return STAT.pack(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & MOST)


def pack_times(times: Sequence[float], end: float) -> bytes:
    """Return the times of the frames of a clip and the end of the last one, in seconds, in a few bytes.

    Frames mostly come at a steady rate, so that the differences of the differences of the numbers' bits are small.
    """
    import numpy as np

    bits = np.asarray(times, dtype="<f8").view("<i8")
    return END.pack(end) + zlib.compress(np.diff(bits, n=2, prepend=[0, 0]).astype("<i8").tobytes())


def unpack_times(packed: bytes) -> tuple[Sequence[float], float]:
    """Return what `pack_times` was given."""
    import numpy as np

    bits = np.frombuffer(zlib.decompress(packed[END.size :]), "<i8").cumsum().cumsum()
    return array("d", bits.view("<f8").tobytes()), END.unpack_from(packed)[0]


def is_fresh(status: os.stat_result) -> bool:
    """Return whether a file was changed so shortly ago that another change could have the same times."""
    changed = max(status.st_mtime_ns, status.st_ctime_ns)
    margin = FINE if changed % 10**9 else COARSE
    return changed / 1e9 > time.time() - margin
