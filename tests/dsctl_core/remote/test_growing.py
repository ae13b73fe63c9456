"""Copies that are read while they grow: whole in the end, fetched once, and never taken for more than is there."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dsctl_core.errors import DsctlError
from dsctl_core.remote import growing
from dsctl_core.remote.errors import RemoteUnreachable
from dsctl_core.remote.growing import GrowingCopy, block_count
from dsctl_core.remote.local import LocalCopies

CONTENT = random.Random(0).randbytes(10_000)
SIZE, NAME = len(CONTENT), "a" * 40


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "FIRST", 100)
    monkeypatch.setattr(growing, "BLOCK", 1000)


def copy_in(folder: Path, size: int = SIZE) -> GrowingCopy:
    return GrowingCopy(LocalCopies(folder, 10 * SIZE), folder / NAME, size)


def pull(sink: Callable[[bytes], object], start: int, end: int) -> None:
    for at in range(start, end, 300):
        sink(CONTENT[at : min(at + 300, end)])


def accept(content: Iterator[bytes]) -> None:
    assert b"".join(content) == CONTENT


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 1100, 1101, 10_000])
def test_the_blocks_of_a_file_are_all_its_bytes_once(size: int, tmp_path: Path) -> None:
    copy, ranges = copy_in(tmp_path, size), []
    for number in range(block_count(size)):
        copy.fetch(number, lambda sink, start, end: (ranges.append((start, end)), sink(bytes(end - start))))
    assert [first for first, _ in ranges] == [0, *(last for _, last in ranges[:-1])]
    assert ranges[-1][1] == size
    assert all(list(copy.blocks(*each)) == [number] for number, each in enumerate(ranges))


def test_what_is_there_can_be_read_and_the_rest_cannot(tmp_path: Path) -> None:
    copy = copy_in(tmp_path)
    assert copy.fetch(3, pull) and copy.fetch(4, pull)
    assert copy.read(2100, 4100) == CONTENT[2100:4100]
    assert copy.read(2099, 2101) is None and copy.read(4099, 4101) is None
    assert list(copy_in(tmp_path).missing()) == [0, 1, 2, *range(5, copy.count)]  # so it is for others, and later


def test_a_block_whose_fetch_failed_is_missing_and_one_of_a_process_that_died_comes_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, other = copy_in(tmp_path), copy_in(tmp_path)

    def fail(sink: Callable[[bytes], object], start: int, end: int) -> None:
        sink(b"?" * 10)
        assert not other.fetch(2, pull)  # it is being fetched
        raise RemoteUnreachable("the line was cut")

    with pytest.raises(RemoteUnreachable):
        copy.fetch(2, fail)
    assert not copy.has(2)

    def die(sink: Callable[[bytes], object], start: int, end: int) -> None:
        sink(b"?" * 10)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=copy.fetch, args=(2, die))
    process.start()
    process.join()
    assert not other.fetch(2, pull)
    monkeypatch.setattr(growing, "CLAIM", 0)
    assert other.fetch(2, pull)
    assert copy.read(1100, 2100) == CONTENT[1100:2100]


def test_a_block_that_comes_slowly_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "RENEWED", 0)
    copy, other = copy_in(tmp_path), copy_in(tmp_path)
    now = time.time()

    def slow(sink: Callable[[bytes], object], start: int, end: int) -> None:
        nonlocal now
        for at in range(start, end, 100):
            sink(CONTENT[at : at + 100])
            now += growing.CLAIM - 1
            assert not other.fetch(2, pull)

    monkeypatch.setattr(time, "time", lambda: now)
    assert copy.fetch(2, slow)
    assert other.read(1100, 2100) == CONTENT[1100:2100]


def test_a_copy_that_is_found_bad_is_removed_and_fetched_anew(tmp_path: Path) -> None:
    def refuse(content: Iterator[bytes]) -> None:
        raise DsctlError("it is damaged")

    copy, other = copy_in(tmp_path), copy_in(tmp_path)
    for number in range(copy.count):
        copy.fetch(number, pull)
    with pytest.raises(DsctlError, match="it is damaged"):
        copy.complete(refuse)
    assert list(tmp_path.glob(f"{NAME}*")) == []
    for number in range(copy.count):
        assert other.fetch(number, pull) or other.has(number)
    assert other.complete(accept)
    assert (tmp_path / NAME).read_bytes() == CONTENT


def fetch_at_random(folder: Path, seed: int, fetched: Path, kill: bool) -> None:
    copy, draw = copy_in(folder), random.Random(seed)
    numbers = draw.sample(range(copy.count), copy.count)

    def counted(sink: Callable[[bytes], object], start: int, end: int) -> None:
        with fetched.open("ab", buffering=0) as stream:  # whole also where the process is killed
            stream.write(f"{start}\n".encode())
        time.sleep(0.002)
        pull(sink, start, end)

    for turn, number in enumerate(numbers):
        if kill and turn == 3:
            os._exit(0)
        while not copy.fetch(number, counted):
            time.sleep(0.002)
    while not copy.complete(accept):
        time.sleep(0.002)
    assert copy.read(0, SIZE) == CONTENT


def test_several_processes_fetch_each_block_once_and_complete_one_copy(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    fetched, folder = tmp_path / "fetched", tmp_path / "copies"
    workers = [context.Process(target=fetch_at_random, args=(folder, n, fetched, n == 0)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert (folder / NAME).read_bytes() == CONTENT
    assert list(folder.glob(f"{NAME}*")) == [folder / NAME]
    starts = fetched.read_text().split()
    assert len(set(starts)) == len(starts) == block_count(SIZE)


def test_a_copy_that_grows_counts_whole_and_goes_when_nobody_has_it(tmp_path: Path) -> None:
    copies = LocalCopies(tmp_path, 2 * SIZE, patience=0.1)
    copy = GrowingCopy(copies, tmp_path / NAME, SIZE)
    with pytest.raises(DsctlError, match="all in use"), copies.new(tmp_path / "other", SIZE):
        pass
    del copy
    with copies.new(tmp_path / "other", SIZE) as stream:
        stream.write(CONTENT)
    assert not (tmp_path / f"{NAME}.growing").exists()
