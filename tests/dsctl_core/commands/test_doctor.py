"""The doctor finds out what is there, survives what is not, and asks no hub by itself."""

from __future__ import annotations

import builtins
import http.server
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dsctl_core.commands import doctor
from dsctl_core.options import DoctorOptions


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers /good with 200 and everything else with 503."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/good" else 503)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def test_no_hub_is_asked_by_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: {}["asked"])
    assert doctor.examine(DoctorOptions()).hubs == {}


def test_a_hub_that_answers_is_reachable_and_others_say_why_not(server: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "*")
    closed = "http://127.0.0.1:1"
    addresses = {"good": f"{server}/good", "broken": f"{server}/broken", "closed": closed}
    monkeypatch.setattr(doctor, "hub_addresses", lambda: addresses)
    answers = doctor.reachable_hubs()
    assert answers["good"] == "reachable"
    assert answers["broken"] == f"{server}/broken answered 503"
    assert answers["closed"].startswith(f"{closed}: ")
    problems = doctor.examine(DoctorOptions(hub=True)).problems
    assert [problem.split()[0] for problem in problems] == ["broken", "closed"]


def test_the_addresses_are_those_of_the_hubs_own_clients():
    addresses = doctor.hub_addresses()
    assert set(addresses) == {"huggingface", "modelscope"}
    assert all(address.startswith("https://") for address in addresses.values())


def test_a_torch_that_cannot_be_imported_is_a_problem_and_the_rest_is_still_told(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def failing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "torch":
            raise OSError("libcudart.so: cannot open shared object file")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", failing)
    report = doctor.examine(DoctorOptions())
    assert report.problems == ["torch cannot be imported: libcudart.so: cannot open shared object file"]
    assert report.devices == {}
    assert report.versions["torch"]
    assert "GB free of" in report.memory["main"]


def test_free_disk_is_told_for_a_models_folder_that_does_not_exist_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("DSCTL_MODEL_BASE_PATH", str(tmp_path / "not" / "yet"))
    assert doctor.disk()["models"].endswith(f"GB free, {tmp_path / 'not' / 'yet'}")


def test_devices_and_attention_are_told():
    assert "cores" in doctor.devices()["cpu"]
    assert "math" in doctor.attention_backends()["torch sdpa"]
