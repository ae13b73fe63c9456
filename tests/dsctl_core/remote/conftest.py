"""The S3 server of these tests, started once."""

from collections.abc import Iterator

import pytest

from dsctl_core.remote.retry import Patience
from tests.s3_server import KEYS, S3Server, s3_server

QUICK = Patience(tries=3, first_wait=0.01, timeout=0.5)


@pytest.fixture(scope="session")
def running() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(running: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server with no faults, where the client library will look for it."""
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": running.url}.items():
        monkeypatch.setenv(name, value)
    running.requests.clear()
    yield running
    running.faults.clear()
