"""Runs to serve, the server of the live page in a thread, and requests as no browser would send them."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dsctl_core.files.png import write_png
from dsctl_core.report.live.server import prepare


def metrics(step: int, **values: Any) -> str:
    line = {"step": step, "loss": 1 / (step + 1), "lr": 1e-4, "grad_norm": 0.5, "seconds": 1.0, **values}
    return json.dumps({**line, "samples_per_second": 2.0, "peak_memory_bytes": 2_000_000}) + "\n"


def write_run(
    folder: Path,
    *,
    steps: int = 4,
    prompts: Sequence[str] = ("a robot",),
    sampled: Sequence[int] = (0, 4),
    going: bool = False,
    **options: Any,
) -> Path:
    """Write what a run leaves; one that is `going` has the lock of a process that trains."""
    (folder / "samples").mkdir(parents=True)
    (folder / "state").mkdir()
    if going:
        (folder / "state" / ".lock").touch()
    (folder / "metrics.jsonl").write_text("".join(metrics(step) for step in range(1, steps + 1)))
    about = {"options": {"model": "tiny", "max_steps": 8, **options}, "hardware": {"device": "cpu"}}
    (folder / "run.json").write_text(json.dumps({**about, "versions": {"dsctl": "0.1.0"}}))
    for number, prompt in enumerate(prompts, 1):
        for step in sampled:
            told = {"prompt": prompt, "seed": number, "step": step, "dsctl_version": "0.1.0"}
            picture = Image.new("RGB", (24, 16), (step * 20, 40 * number, 0))
            write_png(folder / "samples" / f"step-{step}-{number}.png", picture, told)
    (folder / f"step-{steps}.safetensors").write_bytes(b"0" * 1000)
    return folder


@dataclass
class Site:
    """A server that runs; `get` sends one request with just these headers."""

    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def get(
        self, path: str, *, method: str = "GET", host: str | None = None, **headers: str
    ) -> http.client.HTTPResponse:
        """Return the answer, whose `content` is read; `sec_fetch_site="none"` is the header Sec-Fetch-Site."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", f"127.0.0.1:{self.port}" if host is None else host)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        answer.content = answer.read()  # type: ignore[attr-defined]
        connection.close()
        return answer

    @contextmanager
    def news(self, *keys: str) -> Iterator[Iterator[tuple[str, str]]]:
        """Follow the runs called `keys`: yields each section as (name, content), for as long as it is asked for."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", f"/events?runs={','.join(keys)}")
        answer = connection.getresponse()
        assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        try:
            yield _events(answer)
        finally:
            connection.close()

    def sections(self, *keys: str) -> dict[str, str]:
        """Return all sections as they are now."""
        with self.news(*keys) as news:
            return dict(next(news) for _ in range(7))


def _events(answer: http.client.HTTPResponse) -> Iterator[tuple[str, str]]:
    for line in answer:
        if line.startswith(b"data: "):
            event = json.loads(line.removeprefix(b"data: "))
            yield event["name"], event["content"]


@contextmanager
def serving(*folders: Path) -> Iterator[Site]:
    """Run the server for `folders` in a thread."""
    server, listener = prepare(folders, 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    with listener:
        port = listener.getsockname()[1]
        thread.start()
        try:
            yield Site(port)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
