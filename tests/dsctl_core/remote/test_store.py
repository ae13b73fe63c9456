"""Against moto's S3 server behind a proxy with faults, one of Google Cloud Storage, and any store of fsspec."""

from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path

import pytest

from dsctl_core.errors import DsctlError
from dsctl_core.remote import gcs, s3
from dsctl_core.remote.errors import RemoteChanged, RemoteError, RemoteExists, RemoteMissing, RemoteUnreachable
from dsctl_core.remote.retry import Patience
from dsctl_core.remote.store import Entry, Remote, backend_of
from tests.gcs_server import ObjectStore
from tests.hub_server import LocalHub
from tests.s3_server import KEYS, Fault

QUICK = Patience(tries=3, first_wait=0.01, timeout=0.5)
DATA = os.urandom(700_000)
GET = "GET /store/x/file.bin"


@pytest.fixture(scope="module")
def bucket(running_server: ObjectStore) -> None:
    running_server.make_bucket("store")


@pytest.fixture
def remote(server: ObjectStore) -> Remote:
    server.make_bucket("store")
    server.put("store", "x/file.bin", DATA)
    return Remote(f"{server.scheme}://store/x", QUICK)


def entry_of(remote: Remote, name: str = "file.bin") -> Entry:
    entry = remote.stat(name)
    assert entry is not None
    return entry


def test_a_read_goes_on_at_the_byte_where_it_stopped_through_cuts_and_503s_and_silence(
    server: ObjectStore, remote: Remote
) -> None:
    server.faults += [
        Fault(GET, cut_after=300_000, times=1),
        Fault(GET, status=503, times=2),
        Fault(GET, cut_after=100_000, times=1),
        Fault(GET, wait=1.0, times=1),
    ]
    came: list[bytes] = []
    remote.pull(entry_of(remote), came.append)
    assert b"".join(came) == DATA
    starts = [str(asked).removeprefix("bytes=").split("-")[0] for asked in server.asked(GET)]
    assert starts == ["0", "300000", "300000", "300000", "400000", "400000"]


def test_a_range_is_one_request_of_these_bytes_alone(server: ObjectStore, remote: Remote) -> None:
    assert remote.read(entry_of(remote), 1000, 1500) == DATA[1000:1500]
    assert server.asked(GET) == ["bytes=1000-1499"]


@pytest.mark.parametrize(
    ("faults", "error"),
    [
        ([Fault(GET, status=503)], RemoteUnreachable),
        ([Fault(GET, cut_after=0)], RemoteUnreachable),
        ([Fault(GET, wait=0.7)], RemoteUnreachable),
        ([Fault(GET, cut_after=300_000, times=1), Fault(GET, etag='"another"')], RemoteChanged),
        ([Fault(GET, status=403)], RemoteError),
        ([Fault(GET, status=404)], RemoteMissing),
    ],
)
def test_what_does_not_pass_is_one_line_without_a_secret(
    server: ObjectStore, remote: Remote, faults: list[Fault], error: type[RemoteError]
) -> None:
    entry = entry_of(remote)
    server.faults += faults
    with pytest.raises(error) as raised:
        remote.read(entry)
    said = f"{raised.value} {raised.value.hint}"
    assert type(raised.value) is error
    assert f"{server.scheme}://store/x/file.bin" in said
    assert "\n" not in said
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in said


def test_a_file_that_was_replaced_since_it_was_listed_is_not_read(server: ObjectStore, remote: Remote) -> None:
    (entry,) = remote.list()
    server.put("store", "x/file.bin", DATA[::-1])
    with pytest.raises(RemoteChanged):
        remote.read(entry)


def test_a_listing_of_more_than_one_page_has_every_file_once_and_no_other_folder(
    server: ObjectStore, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_of(remote.address), "page", 3)
    for name in ("many/", *(f"many/{number}" for number in range(7)), "many more/1"):
        server.put("store", name, b"")
    server.faults.append(Fault("list-type=2", status=503, times=1))
    found = [entry.name for entry in Remote(f"{server.scheme}://store/many", QUICK).list()]
    assert found == [str(number) for number in range(7)]
    assert len(server.asked("list-type=2")) == 1 + 3


def test_of_several_writers_one_succeeds_and_a_lost_answer_is_no_other_writer(
    server: ObjectStore, remote: Remote
) -> None:
    server.faults.append(Fault("PUT", lose_answer=True, times=1))
    remote.put("new", b"first", if_absent=True)
    with pytest.raises(RemoteExists):
        remote.put("new", b"second", if_absent=True)
    version = entry_of(remote, "new").version
    remote.put("new", b"third", if_version=version)
    with pytest.raises(RemoteExists):
        remote.put("new", b"fourth", if_version=version)
    assert remote.read("new") == b"third"
    remote.delete("new")
    remote.delete("new")
    assert remote.stat("new") is None


def test_a_large_file_is_written_in_parts_and_is_there_whole_or_not_at_all(
    server: ObjectStore, remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (s3, gcs):
        monkeypatch.setattr(module, "PART", 5 * 2**20)
    (tmp_path / "large").write_bytes(os.urandom(6 * 2**20))
    server.faults.append(Fault("partNumber=2", status=403))
    with pytest.raises(RemoteError):
        remote.put("large", tmp_path / "large", if_absent=True)
    assert remote.stat("large") is None
    assert server.pending("store") == 0
    server.faults[:] = [Fault("partNumber=2", status=503, times=1)]
    remote.put("large", tmp_path / "large", if_absent=True)
    assert remote.read("large") == (tmp_path / "large").read_bytes()
    with pytest.raises(RemoteExists):
        remote.put("large", tmp_path / "large", if_absent=True)


def test_another_process_opens_its_own_connections(server: ObjectStore, remote: Remote) -> None:
    remote.read("file.bin")
    assert pickle.loads(pickle.dumps(remote)).read("file.bin") == DATA


def test_any_file_system_of_fsspec_is_read_and_written_in_the_same_way() -> None:
    remote = Remote("memory://folder/x")
    remote.put("a/b", b"12345")
    with pytest.raises(RemoteExists):
        remote.put("a/b", b"other", if_absent=True)
    with pytest.raises(RemoteError, match="conditional"):
        remote.put("a/b", b"other", if_version="1")
    (entry,) = remote.list()
    assert (entry.name, entry.size) == ("a/b", 5)
    assert remote.read(entry, 1, 3) == b"23"
    remote.put("a/b", b"67890")
    with pytest.raises(RemoteChanged):
        remote.read(entry)
    remote.delete("a/b")
    assert list(remote.list()) == []


@pytest.mark.parametrize("address", ["gs://bucket/x", "nonsense://bucket/x"])
def test_a_scheme_that_cannot_be_opened_is_one_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(DsctlError) as raised:
        Remote(address).stat("a")
    assert raised.value.hint
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("address", ["s3://b/x", "gs://b/x", "https://nowhere/x", "modelscope://datasets/me/set"])
def test_a_name_service_that_is_away_is_asked_again(
    modelscope: LocalHub, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    for name in ("MODELSCOPE_ENDPOINT", "AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST"):
        monkeypatch.setenv(name, "https://nowhere")
    for name, value in {**KEYS, "NO_GCE_CHECK": "true"}.items():
        monkeypatch.setenv(name, value)
    asked = []

    def look_up(host: object, *_: object, **__: object) -> None:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "no such name")  # as it is said without a network, too

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(RemoteUnreachable, match="cannot be reached"):
        Remote(address, QUICK).stat("a")
    of_one = 2 if address.startswith("https") else 1  # HEAD and GET
    assert len([host for host in asked if host in ("nowhere", "b.nowhere")]) == QUICK.tries * of_one


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../other", "a/../../b"])
def test_a_name_does_not_lead_out_of_the_folder(name: str) -> None:
    with pytest.raises(RemoteError, match="is no file of"):
        Remote("memory://folder").read(name)
