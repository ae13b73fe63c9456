"""The bounded folder of local copies."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from dsctl_core.files.lock import locked
from dsctl_core.remote.errors import RemoteError
from dsctl_core.remote.local import LocalCopies, Opener, disk_limit, fill, limit_disk
from dsctl_core.remote.store import Remote

SIZE, COUNT = 1000, 12


class Counted(Remote):
    """A remote folder that keeps what was read of it."""

    asked: list[str]

    def pull(self, file, sink, start=0, end=None):  # type: ignore[no-untyped-def]
        self.asked.append(file.name)
        super().pull(file, sink, start, end)


@pytest.fixture
def remote() -> Iterator[Counted]:
    made = Counted("memory://copies")
    made.asked = []
    for number in range(COUNT):
        made.put(f"{number}.png", bytes([number]) * SIZE)
    yield made
    for entry in list(made.list()):
        made.delete(entry.name)


def bytes_in(folder: Path) -> int:
    """Return the bytes at one moment: while nothing is removed for something else that comes."""
    total = 0
    with locked(folder / "trim.lock"):
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # its name has changed
                total += path.stat().st_size
    return total


def test_the_folder_is_bounded_and_what_was_not_used_for_longest_goes_first(remote: Counted, tmp_path: Path) -> None:
    copies, entries = LocalCopies(tmp_path / "c", 5 * SIZE), sorted(remote.list())
    for entry in entries[:4]:
        with copies.held(remote, entry) as path:
            assert path.read_bytes() == remote.read(entry)
            assert path.suffix == ".png"
            assert bytes_in(copies.folder) <= copies.limit
    remote.asked.clear()
    with copies.held(remote, entries[0]):  # now the newest
        pass
    assert remote.asked == []
    with copies.held(remote, entries[4]), copies.held(remote, entries[0]):
        assert remote.asked == [entries[4].name]  # another one has gone
    assert bytes_in(copies.folder) <= copies.limit


def test_what_is_in_use_stays_and_its_size_is_an_error_in_the_end(remote: Counted, tmp_path: Path) -> None:
    copies, entries = LocalCopies(tmp_path / "c", 3 * SIZE, patience=0.2), sorted(remote.list())
    with ExitStack() as stack:
        paths = [stack.enter_context(copies.held(remote, entry)) for entry in entries[:3]]
        with pytest.raises(RemoteError, match="all in use"), copies.held(remote, entries[3]):
            pass
        assert all(path.exists() for path in paths)
    with copies.held(remote, entries[3]) as path:
        assert path.exists()
    with pytest.raises(RemoteError, match="larger than all local copies"):
        copies.new(copies.folder / "large", 3 * SIZE + 1).__enter__()


def test_what_a_killed_process_has_left_half_is_removed(remote: Counted, tmp_path: Path) -> None:
    copies, entry = LocalCopies(tmp_path, 5 * SIZE), next(iter(remote.list()))
    with copies.held(remote, entry) as path:
        left = tmp_path / f".{path.name}.01234567.tmp"
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    reserved = tmp_path / ".reserved-01234567"
    reserved.write_bytes(b"0" * SIZE)
    with copies.new(tmp_path / "other", 4 * SIZE) as stream:
        stream.write(b"1" * 4 * SIZE)
    assert not left.exists() and not reserved.exists()


class Halting(Remote):
    """A remote folder that waits in the middle of each file until all of `meeting` are there."""

    meeting: threading.Barrier

    def pull(self, file, sink, start=0, end=None):  # type: ignore[no-untyped-def]
        sink(bytes(SIZE // 2))
        with contextlib.suppress(threading.BrokenBarrierError):
            self.meeting.wait(timeout=0.3)
        sink(bytes(SIZE - SIZE // 2))


def test_what_is_being_fetched_counts_from_its_first_byte(remote: Counted, tmp_path: Path) -> None:
    slow, entries = Halting(remote.address), list(remote.list())
    slow.meeting = threading.Barrier(4)
    several = [LocalCopies(tmp_path / "c", 3 * SIZE, patience=60) for _ in range(2)]  # as in two processes

    def fetch(number: int) -> int:
        with several[number % 2].held(slow, entries[number]) as path:
            return path.stat().st_size

    most = 0
    with ThreadPoolExecutor(4) as threads:
        fetched = [threads.submit(fetch, number) for number in range(8)]
        while not all(each.done() for each in fetched):
            if (tmp_path / "c").exists():
                most = max(most, bytes_in(tmp_path / "c"))
    assert [each.result() for each in fetched] == [SIZE] * 8
    assert 2 * SIZE <= most <= 3 * SIZE  # several at a time, and never more than the limit


def test_a_file_of_another_size_than_it_was_to_have_is_no_copy(tmp_path: Path) -> None:
    copies = LocalCopies(tmp_path, 5 * SIZE)
    with (
        pytest.raises(RemoteError, match=f"a copy of {SIZE - 1} bytes was made of a file of {SIZE}"),
        copies.made("key", ".png", lambda new: short(new)),
    ):
        pass
    assert not copies.has("key", ".png")


def short(new: Opener) -> None:
    with new(SIZE) as stream:
        stream.write(bytes(SIZE - 1))


def test_many_small_copies_do_not_count_the_folder_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies, counted = LocalCopies(tmp_path, 100_000 * SIZE), [0]
    count = LocalCopies._trim

    def counting(self: LocalCopies, most: int) -> int:
        counted[0] += 1
        return count(self, most)

    monkeypatch.setattr(LocalCopies, "_trim", counting)
    for number in range(300):
        with copies.made(str(number), ".png", lambda new: fill(new, bytes(SIZE))):
            pass
    assert counted[0] == 1
    assert bytes_in(tmp_path) == SIZE + 100_000 * SIZE // 256


def read_at_random(folder: Path, seed: int, address: str, names: list[str], wrong: multiprocessing.Queue) -> None:
    copies, remote, draw = LocalCopies(folder, 6 * SIZE), Remote(address), random.Random(seed)
    for _ in range(60):
        name = draw.choice(names)
        entry = remote.stat(name)
        assert entry is not None
        with copies.held(remote, entry) as path:
            if path.read_bytes() != bytes([int(name[:-4])]) * SIZE or bytes_in(folder) > 6 * SIZE:
                wrong.put(name)


def test_several_processes_read_whole_files_within_the_bound(remote: Counted, tmp_path: Path) -> None:
    names = [entry.name for entry in remote.list()]
    context = multiprocessing.get_context("fork")
    wrong = context.Queue()
    arguments = (remote.address, names, wrong)
    workers = [context.Process(target=read_at_random, args=(tmp_path / "c", n, *arguments)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert wrong.empty()


def test_the_limit_is_that_of_the_option_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSCTL_REMOTE_CACHE_GB", "1")
    limit_disk(0.25)
    assert disk_limit() == 250_000_000
    monkeypatch.setenv("DSCTL_REMOTE_CACHE_GB", "much")
    with pytest.raises(RemoteError, match="much"):
        disk_limit()
