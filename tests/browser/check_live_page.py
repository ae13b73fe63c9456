"""The live page in a real browser, which `make browser` runs: it is not among the tests, as it needs a Chromium.

With SCREENSHOTS=FOLDER the page is drawn there at 1200 and 400 pixels.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import pytest
from PIL import Image

from dsctl_core.report.live.find import find_runs
from tests.browser.chromium import Chromium, chromium
from tests.dsctl_core.report.live.serving import Site, serving, write_run

HACK = "<img src=x onerror=\"document.title='hacked'\">"
LABEL = "[...document.querySelectorAll('#runs label')].find(each => each.innerText.includes('{}'))"
PICTURES = "document.querySelectorAll('#prompts img')"
LOADED = f"[...{PICTURES}].every(each => each.complete && each.naturalWidth > 0)"
CAPTIONS = "[...document.querySelectorAll('#prompts figcaption')].map(each => each.innerText)"
AT = "document.getElementById('at').innerText"
SET_STEP = "Object.assign(document.getElementById('step'), {value: 1}).dispatchEvent(new Event('input'))"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live") / "runs"
    write_run(folder / "first", steps=40, sampled=(0, 20, 40), prompts=("a robot", "an owl"), lora_rank=4)
    write_run(folder / "second", steps=30, sampled=(0, 10, 30), prompts=("a robot", "an owl"), lora_rank=8)
    write_run(folder / HACK.replace("/", ""), prompts=[HACK], model=HACK, sampled=(0,))
    write_clip(write_run(folder / "clip", sampled=()) / "samples" / "step-4-1.mp4")
    return folder


def write_clip(file: Path) -> None:
    with av.open(str(file), "w") as container:
        stream = container.add_stream("h264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(16):
            picture = Image.new("RGB", (64, 48), (number * 15, 0, 255 - number * 15))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with chromium(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def site(runs: Path) -> Iterator[Site]:
    with serving(runs) as site:
        yield site


def show(tab: Chromium, site: Site, folder: Path, *names: str, width: int = 1200) -> None:
    """Open the page with the runs called `names`, and wait until they are shown."""
    keys = [found.key for name in names for found in find_runs([folder]) if name in found.name]
    assert len(keys) == len(names)
    tab.events.clear()
    tab.open(f"{site.address}?runs={','.join(keys)}", width)
    tab.wait_for(
        f"document.querySelector('#connection.live') && document.querySelectorAll('pre').length >= {len(keys)}"
    )


def faults(tab: Chromium) -> list[str]:
    """Return the errors, dialogs and refused loads of the page.

    The icon that a browser looks for on its own is none of them: a refusal, which is text, has none,
    and the answer may come when the next page is there.
    """
    wrong = {"Runtime.exceptionThrown", "Page.javascriptDialogOpening", "Log.entryAdded", "Runtime.consoleAPICalled"}
    return [str(event) for event in tab.events if event[0] in wrong and "/favicon.ico'" not in str(event)]


def asked(tab: Chromium) -> list[str]:
    """Return the addresses of all requests of the page."""
    return [event["request"]["url"] for method, event in tab.events if method == "Network.requestWillBeSent"]


def test_runs_are_compared_side_by_side_with_one_slider_and_nothing_is_asked_of_others(
    tab: Chromium, site: Site, runs: Path
):
    show(tab, site, runs, "first")
    tab.evaluate(f"{LABEL.format('second')}.click()")
    tab.wait_for(f"{PICTURES}.length == 4 && {LOADED}")
    assert tab.evaluate("document.querySelectorAll('#curves svg').length") == 5
    assert "--lora-rank" in tab.evaluate("document.getElementById('options').innerText")
    assert tab.evaluate(AT) == "step 40"
    tab.evaluate(SET_STEP)
    assert tab.evaluate(AT) == "step 10"
    assert tab.evaluate(CAPTIONS) == ["first · step 0", "second · step 10"] * 2
    tab.evaluate("document.getElementById('later').click()")
    assert tab.evaluate(CAPTIONS) == ["first · step 20", "second · step 10"] * 2
    tab.wait_for(LOADED)
    assert "," in tab.evaluate("new URLSearchParams(location.search).get('runs')")
    assert faults(tab) == []
    assert len(asked(tab)) > 5 and {url for url in asked(tab) if not url.startswith(site.address)} <= {"data:,"}


@pytest.mark.parametrize("width", [1200, 400])
def test_the_page_fits_a_screen_and_a_phone_and_shows_hostile_names_as_text(
    tab: Chromium, site: Site, runs: Path, width: int
):
    show(tab, site, runs, "onerror", "first", width=width)
    tab.wait_for(f"{PICTURES}.length == 3 && {LOADED}")
    assert tab.evaluate("document.querySelector('#prompts p').innerText") == HACK
    assert HACK in tab.evaluate("document.getElementById('runs').innerText")
    tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("document.title") == f"Runs in {runs}"
    assert {url for url in asked(tab) if not url.startswith(site.address)} <= {"data:,"}
    assert not [url for url in asked(tab) if url.endswith("/x")] and faults(tab) == []
    if "SCREENSHOTS" in os.environ:
        tab.screenshot(Path(os.environ["SCREENSHOTS"]) / f"live-{width}.png")


def test_a_clip_plays(tab: Chromium, site: Site, runs: Path):
    show(tab, site, runs, "clip")
    tab.wait_for("document.querySelector('video').currentTime > 0.2")
    assert tab.evaluate("document.querySelector('video').videoWidth") == 64
    assert faults(tab) == []


class Elsewhere(BaseHTTPRequestHandler):
    """Another site, which is only a page to send requests from."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>elsewhere</title>")

    def log_message(self, *_: object) -> None:
        pass


TAGGED = (
    "new Promise(done => document.documentElement.append(Object.assign(document.createElement('{}'), "
    "{{onload: () => done('loaded'), onerror: () => done('refused'), src: '{}'}})))"
)


def test_another_site_gets_nothing_through_the_browser(tab: Chromium, site: Site, runs: Path):
    show(tab, site, runs, "first")
    tab.wait_for(f"{PICTURES}.length == 2")
    sample = tab.evaluate(f"location.origin + '/' + {PICTURES}[0].getAttribute('src')")
    tries = [TAGGED.format("img", f"{sample}2"), TAGGED.format("script", f"{site.address}live.js")]
    tries += [f"fetch('{site.address}').then(answer => answer.text(), () => 'refused')"]
    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            for host in ("127.0.0.1", "localhost"):  # the same site at another port, and another site
                tab.open(f"http://{host}:{server.server_port}/", 1200)
                tab.wait_for("document.title == 'elsewhere'")
                assert [tab.evaluate(each) for each in tries] == ["refused"] * 3
                tab.evaluate(f"location.href = '{site.address}'")
                tab.wait_for("document.body.innerText.includes('comes from another site')")
        finally:
            server.shutdown()


def test_a_training_is_followed_without_reloading(tab: Chromium, tmp_path: Path):
    folder = tmp_path / "runs"
    folder.mkdir()
    words = ["train", "sft", "--model", "tiny", "--dataset-base-path", "dsctl_core/assets/datasets/robot"]
    words += [
        "--lora-rank",
        "2",
        "--max-steps",
        "450",
        "--sample-every",
        "150",
        "--sample-steps",
        "2",
        "--device",
        "cpu",
    ]
    words += ["--sample-prompt", "a robot", "--output-path", str(folder / "going"), "--quiet"]
    root = Path(__file__).parents[2]
    with serving(folder) as site:
        tab.events.clear()
        tab.open(site.address, 1200)
        tab.wait_for("document.getElementById('runs').innerText.includes('no run here yet')")
        tab.evaluate("window.kept = 1")
        with subprocess.Popen([sys.executable, "-m", "dsctl", *words], cwd=root) as process:
            try:
                tab.wait_for("document.querySelector('.state')?.innerText == 'training'", 180)
                seen = set()
                while process.poll() is None:
                    seen.add(tab.evaluate("document.querySelector('#runs progress')?.value ?? 0"))
                assert process.returncode == 0
            finally:
                process.kill()
        tab.wait_for("document.querySelector('.state')?.innerText == 'finished'")
        tab.wait_for("document.getElementById('at').innerText == 'step 450'")
        tab.wait_for(f"{PICTURES}.length == 1 && {LOADED}")
        assert tab.evaluate("document.getElementById('step').max") == "3"
        assert len(seen) > 2, f"of the steps only {seen} were shown"
        assert tab.evaluate("window.kept") == 1 and faults(tab) == []
