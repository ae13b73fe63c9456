"""Fixtures of all tests: one thread, no network, no settings from outside, a folder for each test."""

from __future__ import annotations

import ctypes
import operator
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from dsctl_core.remote import lookup
from tests.gcs_server import GcsServer, ObjectStore, gcs_server
from tests.hub_server import LocalHub, local_hub
from tests.s3_server import KEYS, S3Server, s3_server
from tests.warm.start import warm_python

# Read when torch and the hubs' libraries are imported, so set before any test module is.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# The same examples every time, so that more of them would find nothing more in a second run, and no limit of time: a
# machine that is busy is no fault of what is tested.
settings.register_profile("dsctl", derandomize=True, deadline=None, database=None, max_examples=50)
settings.load_profile("dsctl")

# What a process has written outlives its end, a killed one's too; only a machine without power needs it on the disk.
os.fsync = lambda _: None

REPOSITORY = Path(__file__).parents[1]


LONGEST = Path(__file__).parent / "longest.txt"  # seconds and module, of those that take most


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the modules that take longest, so that the processes that share the tests end at the same time."""
    lines = LONGEST.read_text(encoding="utf-8").splitlines()
    order = {name: number for number, (_, name) in enumerate(line.split() for line in lines)}
    items.sort(key=lambda item: order.get(item.path.relative_to(REPOSITORY).as_posix(), len(order)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Start all random numbers from the same state, so that a test draws the same whatever ran before, or beside it."""
    ctypes.CDLL(None).srand(1)  # of C, with which `Image.effect_noise` draws
    random.seed(0)
    for name, seed in (("numpy", "random.seed"), ("torch", "manual_seed")):
        if name in sys.modules:
            operator.attrgetter(seed)(sys.modules[name])(0)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Clear what the person running the tests has set for dsctl, and keep stray output out of the repository."""
    for name in list(os.environ):
        if name.startswith(("DSCTL_", "DIFFSYNTH_", "ACCELERATE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DSCTL_SKIP_DOWNLOAD", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "user_cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def repository() -> Path:
    """The folder of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def python() -> Iterator[str]:
    """An interpreter whose processes have the libraries imported when they start: seconds less for each."""
    with warm_python() as path:
        yield path


@pytest.fixture(scope="session")
def running_s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(running_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server without faults, where the client library looks for it."""
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": running_s3.url}.items():
        monkeypatch.setenv(name, value)
    running_s3.requests.clear()
    yield running_s3
    running_s3.faults.clear()


@pytest.fixture(scope="session")
def running_gs() -> Iterator[GcsServer]:
    with gcs_server() as server:
        yield server


@pytest.fixture
def gs(running_gs: GcsServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[GcsServer]:
    """A server of Google Cloud Storage without faults, where the client library looks for it."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", running_gs.url)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    running_gs.requests.clear()
    yield running_gs
    running_gs.faults.clear()
    running_gs.token = None


@pytest.fixture(params=["s3", "gs"])
def server(request: pytest.FixtureRequest) -> ObjectStore:
    """A store that writes on a condition, without faults: of each kind."""
    found: ObjectStore = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def modelscope(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    """An empty hub that speaks as ModelScope does, where its SDK and addresses look for it, without a token."""
    with local_hub() as hub:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
        monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / ".modelscope"))
        monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
        lookup._opened.cache_clear()  # of tests before: their connections are to another hub, with another token
        yield hub
