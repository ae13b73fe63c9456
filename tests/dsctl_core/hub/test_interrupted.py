"""Ctrl-C in the middle of a download: one line, no file that a later run takes for whole, and that run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.dsctl_core.hub.conftest import REPO
from tests.hub_server import Fault, LocalHub

SIZE = 24_000_000  # the clients write in pieces of up to 10 MB
SENT = 13_000_000  # before nothing more comes
FILE = "transformer/model.safetensors"


@pytest.fixture
def content(hub: LocalHub) -> bytes:
    """The one large file of the hub's model."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [SIZE], "data_offsets": [0, SIZE]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(range(250)) * (SIZE // 250)
    hub.add(REPO, {FILE: content, "transformer/config.json": b"{}"})
    return content


def download(source: str, repository: Path) -> dict[str, Any]:
    """Return what Popen needs to run the download, but for where its output goes."""
    words = ["download", REPO, "--source", source, "--local-dir", "model", "--quiet"]
    # Said to the child outright: of a program that runs in the background a shell lets Ctrl-C be ignored.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from dsctl.app import main; sys.exit(main(sys.argv[1:]))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HOME": str(Path(".home").absolute()), "PYTHONPATH": str(repository)}
    return {"args": [sys.executable, "-c", code, *words], "env": environment, "text": True}


def bytes_here() -> int:
    return sum(path.stat().st_size for path in Path().rglob("*") if path.is_file())


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_ctrl_c_leaves_no_half_file_for_whole_and_the_next_run_goes_on(
    hub: LocalHub, content: bytes, source: str, repository: Path
):
    hold = threading.Event()
    served = {"huggingface": "GET /storage/", "modelscope": r"GET .*/repo\?.*model.safetensors"}[source]
    hub.faults.append(Fault(served, drop_after=SENT, hold=hold))
    with subprocess.Popen(**download(source, repository), stderr=subprocess.PIPE) as process:
        try:
            while bytes_here() < SENT // 2 and process.poll() is None:
                threading.Event().wait(0.05)  # the fixture has taken the waiting out of time.sleep
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=100)  # a thread that waits for the hub gives up after 10 s
        finally:
            hold.set()
            process.kill()
    assert (process.returncode, said.splitlines()[-1]) == (130, "interrupted")
    assert bytes_here() >= SENT // 2
    assert not (Path("model") / FILE).exists()
    hub.faults.clear()
    again = subprocess.run(**download(source, repository), capture_output=True, timeout=200, check=False)
    assert again.returncode == 0, again.stderr
    assert (Path("model") / FILE).read_bytes() == content
