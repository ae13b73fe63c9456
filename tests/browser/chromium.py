"""Drives a headless Chromium over its DevTools pipe, with nothing but the standard library."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--autoplay-policy=no-user-gesture-required", "--hide-scrollbars", "--remote-debugging-pipe"),
)


def find_chromium() -> str:
    """Return the path of a Chromium; an AssertionError says how to install one."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    assert found, "no Chromium was found; on Debian: apt-get install --no-install-recommends chromium"
    return found


class Chromium:
    """A tab of a browser. `events` are all events so far, as (method, parameters)."""

    def __init__(self, reader: int, writer: int) -> None:
        self.reader, self.writer = reader, writer
        self.rest, self.number, self.events = b"", 0, list[tuple[str, dict[str, Any]]]()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    session: str | None = None

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and return its result."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read(30)
            assert answer is not None, f"no answer to {method}"
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def _read(self, seconds: float) -> dict[str, Any] | None:
        """Return the next message and keep it if it is an event; None if there is none for so many seconds."""
        while b"\0" not in self.rest:
            if not select.select([self.reader], [], [], seconds)[0]:
                return None
            data = os.read(self.reader, 1 << 20)
            assert data, "Chromium has ended"
            self.rest += data
        text, _, self.rest = self.rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self.events.append((message["method"], message["params"]))
        return message

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression in the page; an exception of it is an AssertionError."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, script: str, seconds: float = 30) -> None:
        """Wait until a JavaScript expression is true; an exception is waited out, as while a page is loaded."""
        end = time.monotonic() + seconds
        while True:
            answer = self.call("Runtime.evaluate", expression=f"Boolean({script})", returnByValue=True)
            if answer["result"].get("value") is True:
                return
            assert time.monotonic() < end, f"{script} is not true after {seconds} s: {self.evaluate(BODY)}"
            time.sleep(0.1)

    def open(self, address: str, width: int, height: int = 900) -> None:
        """Open a page in a window of this size; one that is narrower than 600 pixels is a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Page.navigate", url=address)

    def screenshot(self, file: Path) -> None:
        """Write a picture of the whole page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(shot["data"]))


BODY = "document.body.innerText.slice(0, 2000)"


@contextmanager
def chromium(profile: Path) -> Iterator[Chromium]:
    """Start a browser with a profile of its own, and end it with all its processes."""
    there, back = os.pipe(), os.pipe()
    # The browser reads at 3 and writes at 4; above them, so that neither is overwritten while they are moved there.
    read, write = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (there[0], back[1]))
    moves = [(os.POSIX_SPAWN_DUP2, read, 3), (os.POSIX_SPAWN_DUP2, write, 4)]
    moves += [(os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)]
    words = [find_chromium(), *FLAGS, f"--user-data-dir={profile}"]
    environment = {**os.environ, "HOME": str(profile)}
    process = os.posix_spawn(words[0], words, environment, file_actions=moves, setpgroup=0)
    for end in (there[0], back[1], read, write):
        os.close(end)
    try:
        yield Chromium(back[0], there[1])
    finally:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(back[0])
        os.close(there[1])
