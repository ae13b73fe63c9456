"""What Google Cloud Storage has alone: its credentials, its generations, and uploads that go on at a byte."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dsctl_core.remote import gcs
from dsctl_core.remote.errors import RemoteError, RemoteExists, RemoteMissing, RemoteUnreachable
from dsctl_core.remote.retry import Patience
from dsctl_core.remote.store import Remote
from tests.gcs_server import GcsServer
from tests.s3_server import Fault

QUICK = Patience(tries=3, first_wait=0.01, timeout=2)
TOKEN = "gs-sesame"


@pytest.fixture
def remote(gs: GcsServer) -> Remote:
    gs.make_bucket("own")
    return Remote("gs://own/x", QUICK)


@pytest.fixture
def account(gs: GcsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a service account that is given tokens by the server."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    about = {"type": "service_account", "client_email": "me@own.example", "token_uri": f"{gs.url}/token"}
    path = tmp_path / "account.json"
    path.write_text(json.dumps({**about, "project_id": "own", "private_key": key.decode(), "private_key_id": "1"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    gs.token = gs.issued = TOKEN
    return path


def test_a_service_account_signs_in_and_one_that_is_not_allowed_is_one_line(
    gs: GcsServer, account: Path, remote: Remote
) -> None:
    remote.put("a", b"1")
    assert remote.read("a") == b"1"
    gs.token = "another"
    with pytest.raises(RemoteError, match="gs://own/x/a cannot be used: the store refuses these credentials") as raised:
        Remote("gs://own/x", QUICK).read("a")
    said = f"{raised.value} {raised.value.hint}"
    assert "GOOGLE_APPLICATION_CREDENTIALS" in said
    assert TOKEN not in said and "PRIVATE KEY" not in said


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "was not found"), ("{", "is not a valid json file"), ("{}", "does not have a valid type")],
)
def test_a_file_of_credentials_that_is_of_no_use_is_named_and_none_is_tried_in_its_place(
    gs: GcsServer, remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, said: str
) -> None:
    path = tmp_path / "account.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    with pytest.raises(RemoteError, match=f"gs://own/x/a cannot be used: .*account.json {said}") as raised:
        remote.stat("a")
    assert "set GOOGLE_APPLICATION_CREDENTIALS" in str(raised.value.hint)
    assert "Error(" not in str(raised.value)
    assert gs.requests == []


@pytest.mark.parametrize(
    ("says", "said"),
    [(b'{"error": {"message": "Bucket is requester pays"}}', "Bucket is requester pays"), (b"<html>", "Bad Request")],
)
def test_what_the_store_says_of_a_request_is_shown(gs: GcsServer, remote: Remote, says: bytes, said: str) -> None:
    gs.faults.append(Fault("HEAD", status=400, says=says))
    with pytest.raises(RemoteError, match=f"gs://own/x/a cannot be used: status 400, {said}"):
        remote.stat("a")


def test_a_bucket_that_is_not_there_is_one_line(gs: GcsServer) -> None:
    with pytest.raises(RemoteMissing, match="gs://no-such-bucket/x does not exist"):
        list(Remote("gs://no-such-bucket/x", QUICK).list())


def test_what_was_to_be_replaced_and_is_gone_is_missing_and_a_delete_is_of_one_generation(remote: Remote) -> None:
    first = remote.put("a", b"1")
    assert remote.put("a", b"2", if_version=first) != first
    remote.delete("a", first)
    assert remote.read("a") == b"2"
    with pytest.raises(RemoteExists):
        remote.put("a", b"3", if_version=first)
    remote.delete("a")
    with pytest.raises(RemoteMissing):
        remote.put("a", b"3", if_version=first)


@pytest.mark.parametrize("lost", [1, 2])
def test_an_upload_goes_on_at_the_byte_that_the_store_has_and_a_lost_answer_is_no_other_writer(
    gs: GcsServer, remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    monkeypatch.setattr(gcs, "PART", 2**18)
    (tmp_path / "large").write_bytes(os.urandom(2**18 + 999))
    gs.faults.append(Fault(f"partNumber={lost}", lose_answer=True, times=1))
    version = remote.put("large", tmp_path / "large", if_absent=True)
    assert remote.read("large") == (tmp_path / "large").read_bytes()
    assert remote.stat("large").version == version  # type: ignore[union-attr]
    assert len(gs.asked("partNumber")) == 2  # neither was sent again
    gs.faults.append(Fault("partNumber=2", status=503))
    with pytest.raises(RemoteUnreachable) as raised:
        remote.put("other", tmp_path / "large")
    assert "upload_id" not in str(raised.value)
    assert gs.pending("own") == 0


def test_a_name_that_ends_in_a_slash_is_no_file_and_a_boundary_in_the_content_ends_nothing(remote: Remote) -> None:
    content = b"--\r\n--a\r\n\r\n--==0==--\r\n"
    remote.put("a b?#%2F é/c", content)
    remote.put("folder/", b"")
    assert [entry.name for entry in remote.list()] == ["a b?#%2F é/c"]
    assert remote.read("a b?#%2F é/c") == content
