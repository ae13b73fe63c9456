"""The index of a tar has all of its files, or the tar is refused."""

from __future__ import annotations

import io
import random
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from dsctl_core.errors import DsctlError
from dsctl_core.remote.tar import Container, Index, read_index

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def tar_of(files: dict[str, bytes], form: int = tarfile.GNU_FORMAT, **kinds: tuple[bytes, str]) -> bytes:
    """A tar of files, and of links `kinds`: {name: (type, target)}."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, (kind, target) in kinds.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    return stream.getvalue()


def index(data: bytes) -> Index:
    return read_index(Container("a.tar", len(data), "", lambda start, end: data[start:end]))


def outcome(data: bytes) -> dict[str, list[int]] | None:
    """Where the files lie in a tar; None if it is refused."""
    try:
        return index(data)["files"]
    except DsctlError as error:
        return None if re.fullmatch("a.tar cannot be read as a tar: .*", str(error)) else {}


SAMPLES = {f"{n:04}.{suffix}": random.Random(n).randbytes(700 * n) for n in range(6) for suffix in ("png", "txt")}


@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_or_cut_tar_is_refused_wherever_it_is_hit_or_has_all_of_its_files(form: int) -> None:
    names = {f"{'long' * 30 if n == '0004.png' else ''}{n}": content for n, content in SAMPLES.items()}
    names = names if form != tarfile.USTAR_FORMAT else SAMPLES
    data = tar_of(names, form)
    whole = index(data)["files"]
    headers = [start - 512 for start, _ in whole.values()]
    assert list(whole) == list(names)
    last = sum(whole["0005.txt"])
    end = -(-last // 512) * 512
    for start in headers:
        for at in (*range(0, 512, 37), *range(124, 136), *range(148, 157)):  # size and checksum, and some of the rest
            hurt = bytearray(data)
            hurt[start + at] ^= 1 + at % 255
            assert outcome(bytes(hurt)) in (None, whole)
        assert outcome(data[: start + 100]) is None
        assert outcome(data[:start]) is None
        assert outcome(data[:start] + bytes(512) + data[start + 512 :]) is None
    for at in range(0, end, 512):
        assert outcome(data[:at]) is None
        if any(data[at + 4096 :]):  # else nothing tells it from a tar that ends there
            assert outcome(data[:at] + bytes(4096) + data[at + 4096 :]) in (None, whole)
        assert outcome(data[: end + 1024] + data[at : at + 512]) is None or not any(data[at : at + 512])
    assert outcome(data[:end]) is None
    assert [outcome(data[:end] + bytes(512 * n)) for n in (1, 2, 7, 20_000)] == [whole] * 4


def test_what_gnu_tar_writes_is_read_with_the_second_names_of_files(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.png").write_bytes(b"picture")
    (tmp_path / "s" / "a.txt").write_bytes(b"words")
    for suffix in ("png", "txt"):
        (tmp_path / "s" / f"b.{suffix}").hardlink_to(tmp_path / "s" / f"a.{suffix}")
    (tmp_path / "s" / "c.png").symlink_to("a.png")
    for form in ("gnu", "oldgnu", "pax", "posix", "ustar", "v7"):
        subprocess.run(["tar", "-cf", "x.tar", f"--format={form}", "./s", "s/b.png"], cwd=tmp_path, check=True)
        data = (tmp_path / "x.tar").read_bytes()
        found = index(data)
        assert {name: data[start : start + size] for name, (start, size) in found["files"].items()} == {
            "s/a.png": b"picture",
            "s/b.png": b"picture",
            "s/a.txt": b"words",
            "s/b.txt": b"words",
        }
        assert found["texts"] == {"s/a.txt": "words", "s/b.txt": "words"}
        assert found["left"] == {"symbolic links": 1}


def test_links_lead_to_what_is_before_them() -> None:
    links = {"b.png": (tarfile.LNKTYPE, "./a.png"), "c.png": (tarfile.LNKTYPE, "b.png")}
    found = index(tar_of({"a.png": b"picture"}, **links))
    assert found["files"]["c.png"] == found["files"]["b.png"] == found["files"]["a.png"]
    symbolic = {"b.png": (tarfile.SYMTYPE, "a.png"), "c.png": (tarfile.LNKTYPE, "b.png"), "d": (tarfile.FIFOTYPE, "")}
    found = index(tar_of({"a.png": b"picture"}, **symbolic))
    assert (list(found["files"]), found["left"]) == (["a.png"], {"symbolic links": 2, "special files": 1})
    with pytest.raises(DsctlError, match=r"'b\.png' is a hard link to 'x\.png', which is not before it"):
        index(tar_of({"a.png": b"picture"}, **{"b.png": (tarfile.LNKTYPE, "x.png")}))


@pytest.mark.parametrize("second", ["a.png", "./a.png", "b.txt"])
def test_two_files_of_one_name_are_refused(second: str) -> None:
    first = {"a.png": b"1", "b.txt": b"1"}
    data = tar_of(first)[: 4 * 512] + tar_of({second: b"2"})
    with pytest.raises(DsctlError, match=f"it has two files of the name {second.removeprefix('./')}"):
        index(data)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (tarfile.REGTYPE, -1),
        (tarfile.REGTYPE, -1024),
        (tarfile.CONTTYPE, -(2**40)),
        (tarfile.XHDTYPE, -1024),
        (tarfile.GNUTYPE_LONGNAME, -(2**40)),
        (b"Z", -1024),
    ],
)
def test_a_size_below_0_is_refused(kind: bytes, size: int) -> None:
    member = tarfile.TarInfo("b.png")
    member.type, member.size = kind, size
    header = member.tobuf(tarfile.GNU_FORMAT)
    assert outcome(tar_of({"a.png": b"1"})[: 2 * 512] + header + tar_of({"c.png": b"1"})) is None
