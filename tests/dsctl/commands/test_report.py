"""`dsctl report`: a page about a real run, in a file or served until Ctrl-C, and what cannot be reported on."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.dsctl_core.report.live.serving import write_run


def test_a_run_has_a_page_where_it_is_asked_for(dsctl, model, files, tmp_path):
    flags = ["--model", model, "--dataset-base-path", "data", "--lora-rank", "2", "--max-steps", "2", "--device", "cpu"]
    assert dsctl("train", *flags, "--output-path", "out", "--quiet").code == 0
    assert dsctl("report", "out", "--json").json == {"report": "out/report.html"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["hardware"]["system"] in page
    assert dsctl("report", "out", "--output", "deep/page.html").code == 0
    assert (tmp_path / "deep" / "page.html").is_file()


def test_a_folder_without_a_run_is_an_error(dsctl, files):
    assert dsctl("report", "data").fault(1)[0] == "data holds no run"
    assert "RUNS is missing" in dsctl("report").fault(2)[0]


@pytest.mark.parametrize(
    ("words", "problem", "hint"),
    [
        (("--port", "8000"), "--port has no effect without --serve", "--serve"),
        (("--serve", "--output", "a.html"), "--output has no effect with --serve", "leave it out"),
        (("--serve", "--csv", "a.csv"), "--csv has no effect with --serve", "leave it out"),
        (("--serve", "--port", "65536"), "--port is 65536", "65535"),
        (("--serve", "--port", "http"), "--port is 'http'", "whole number"),
    ],
)
def test_what_has_no_effect_with_or_without_serving_is_refused(dsctl, words, problem, hint):
    write_run(Path("runs/a"))
    error, told = dsctl("report", "runs", *words).fault(2)
    assert problem in error and hint in told
    assert sorted(path.name for path in Path().iterdir()) == ["runs"]


def test_a_port_that_is_taken_and_a_package_that_is_missing_are_errors(dsctl, monkeypatch):
    write_run(Path("runs/a"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert (
            dsctl("report", "runs", "--serve", "--port", port).fault(1)[0].startswith(f"port {port} cannot be used: ")
        )
    assert dsctl("report", "run", "--serve").fault(1)[0] == "run does not exist"
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "dsctl[serve]" in dsctl("report", "runs", "--serve").fault(1)[1]


def test_ctrl_c_ends_serving_at_once_also_while_a_page_follows_the_runs(python, repository):
    write_run(Path("runs/a"), going=True)
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program += "; from dsctl.app import main; sys.exit(main(sys.argv[1:]))"
    words = [python, "-c", program, "report", "runs", "--serve", "--port", "0", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = json.loads(process.stdout.readline())["address"]
            assert address.startswith("http://127.0.0.1:") and address.endswith("/")
            connection = http.client.HTTPConnection(
                "127.0.0.1", int(address.rstrip("/").rpartition(":")[2]), timeout=60
            )
            connection.request("GET", "/events")
            assert connection.getresponse().readline() == b"event: section\n"
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
            assert time.monotonic() - began < 10
            connection.close()
            assert process.stderr.read().splitlines()[-1] == "interrupted"
        finally:
            process.kill()
