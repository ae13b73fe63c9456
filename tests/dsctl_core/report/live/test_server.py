"""The live page from outside: it follows the runs, refuses what is not its own, and leaves every file as it was."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from dsctl_core.report.live import app
from dsctl_core.report.live.find import find_runs
from tests.dsctl_core.report.html_page import NASTY, Page
from tests.dsctl_core.report.live.serving import Site, metrics, serving, write_run

SECRET = "nobody's business"


class Served:
    """A folder of three runs, one of them going on, one under a hostile name; and a secret beside it."""

    def __init__(self, folder: Path, site: Site) -> None:
        self.folder, self.site = folder, site
        self.keys = {found.folder.name: found.key for found in find_runs([folder])}


HOSTILE = f"{NASTY.replace('/', '')}\"><b onclick='x'>\u202e"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = (tmp_path_factory.mktemp("live") / "runs").resolve()
    write_run(folder / "going", steps=2, sampled=(0, 2), going=True, lora_rank=4)
    write_run(folder / "deep" / "done", steps=8, sampled=(0, 4, 8), prompts=("a robot", "an owl"), lora_rank=16)
    write_run(folder / HOSTILE, prompts=[NASTY], model=NASTY)
    (folder / "going" / "samples" / "step-2-2.mp4").write_bytes(bytes(range(200)))
    (folder.parent / "secret.png").write_text(SECRET)
    (folder / "going" / "samples" / "step-9-9.png").symlink_to(folder.parent / "secret.png")
    (folder / "broken").mkdir()
    (folder / "broken" / "run.json").write_text("{")
    with serving(folder) as site:
        yield Served(folder, site)


def state_of(folder: Path) -> dict[str, tuple[int, int, int]]:
    paths = [folder, *folder.rglob("*")]
    return {str(path): ((s := path.lstat()).st_size, s.st_mtime_ns, s.st_ino) for path in paths}


def test_the_page_names_nothing_beside_itself_and_the_browser_is_told_to_load_nothing_else(served: Served):
    answers = {path: served.site.get(path) for path in ("/", "/live.js", "/style.css")}
    assert [answer.status for answer in answers.values()] == [200, 200, 200]
    page = Page(answers["/"].content.decode())
    assert sorted(page.sources) == ["data:,", "live.js", "style.css"]
    for answer in answers.values():
        assert not re.search(rb"https?:|//[a-z]|@import|url\(", answer.content.replace(b"\n// ", b"\n"))
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
        assert "http" not in policy and "*" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in answer.headers
    script = answers["/live.js"].content.decode()
    named = set(re.findall(r'\bat\("(\w+)"\)', script))
    assert named >= {"runs", "samples", "step"}
    assert named <= set(re.findall(r'id="(\w+)"', answers["/"].content.decode()))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:9000"}, 200),  # through an SSH tunnel
        ({"host": "[::1]:9000"}, 200),
        ({"sec_fetch_site": "same-origin"}, 200),
        ({"sec_fetch_site": "none"}, 200),
        ({"host": "evil.example"}, 403),  # a name that was made to point here
        ({"host": "127.0.0.1.evil.example:80"}, 403),
        ({"host": "evil.example@127.0.0.1"}, 403),
        ({"host": "127.0.0.1:x"}, 403),
        ({"host": "127.0.0.1/evil.example"}, 403),
        ({"host": ""}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),  # another port of this machine
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"method": "POST"}, 405),
        ({"method": "PUT"}, 405),
        ({"method": "DELETE"}, 405),
        ({"method": "OPTIONS", "origin": "https://evil.example"}, 405),
    ],
)
@pytest.mark.parametrize("path", ["/", "/events", "/samples/KEY/1/0"])
def test_only_requests_of_the_page_itself_are_answered(served: Served, path: str, headers: dict, status: int):
    if path == "/events" and status == 200:
        path = "/live.js"  # what never ends has tests of its own
    answer = served.site.get(path.replace("KEY", served.keys["going"]), **headers)
    assert answer.status == status
    assert answer.headers["content-security-policy"]
    if status != 200:
        assert len(answer.content) < 120 and b"robot" not in answer.content


@pytest.mark.parametrize(
    "path",
    [
        *("/../secret.png", "/samples/../../secret.png", "/samples/KEY/../../../secret.png"),
        *("/samples/KEY/1/..%2f..%2f..%2fsecret.png", "/samples/%2e%2e/%2e%2e/1", "/%2e%2e/secret.png", "//etc/passwd"),
        *(
            "/samples/KEY/1/0/../../../../secret.png",
            "/samples/KEY/1/0%00.png",
            "/samples/KEY/-1/0",
            "/samples/KEY/1/77",
        ),
        "/samples/KEY/9/9",  # a link that leads out
        "/samples/0123456789abcdef/1/0",
        *("/going/run.json", "/runs/going/run.json", "/live.html.j2", "/app.py"),
        f"/samples/KEY/{'9' * 5000}/0",
    ],
)
def test_nothing_but_samples_can_be_reached(served: Served, path: str):
    answer = served.site.get(path.replace("KEY", served.keys["going"]))
    assert answer.status in (400, 404)
    assert SECRET.encode() not in answer.content


def test_a_sample_is_what_was_drawn_and_a_clip_can_be_read_from_the_middle(served: Served):
    samples = json.loads(served.site.sections(served.keys["going"])["samples"])
    files = {each["number"]: each["runs"]["0"]["files"] for each in samples["prompts"]}
    assert samples["steps"] == [0, 2] and files.keys() == {1, 2}
    picture = served.site.get("/" + files[1]["2"]["address"])
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(BytesIO(picture.content)).getpixel((0, 0)) == (40, 40, 0)
    assert files[2]["2"]["video"] is True and files[1]["2"]["video"] is False
    clip = served.site.get("/" + files[2]["2"]["address"], range="bytes=100-109")
    assert (clip.status, clip.headers["content-type"], clip.content) == (206, "video/mp4", bytes(range(100, 110)))


def test_runs_are_compared_side_by_side_and_one_that_cannot_be_read_says_why(served: Served):
    keys = served.keys["going"], served.keys["done"], served.keys["broken"]
    found = served.site.sections(*keys)
    for part in ("runs", "numbers", "curves", "options", "log", "disk"):
        assert Page(found[part]).open == [], part
    text = {name: Page(content).text for name, content in found.items()}
    assert "broken" in text["numbers"] and "is not valid JSON" in text["numbers"]
    assert found["curves"].count("<svg") == 5 and found["curves"].count('class="main"') == 10
    assert re.search(r"--lora-rank\s+4\s+16", text["options"])
    assert "step 8  loss 0.1111" in text["log"] and "weights" in text["disk"]
    samples = json.loads(found["samples"])
    assert samples["runs"] == ["going", "deep/done"] and samples["steps"] == [0, 2, 4, 8]
    (robot, owl) = samples["prompts"]
    assert {run: list(each["files"]) for run, each in robot["runs"].items()} == {"0": ["0", "2"], "1": ["0", "4", "8"]}
    assert robot["prompt"] == "a robot" and robot["settings"] == "seed 1"
    assert owl["runs"]["1"]["differs"] == "an owl"  # the clip of the other run does not tell its prompt


def test_nothing_of_a_run_is_taken_for_html(served: Served):
    found = served.site.sections(served.keys[HOSTILE])
    for part in ("runs", "numbers", "curves", "options", "log", "disk"):
        page = Page(found[part])
        assert not {"script", "b"} & set(page.tags) - ({"b"} if part == "numbers" else set()), part
        assert not re.search(r"<[^>]*onclick", found[part].replace("&#39;", "'").split("&lt;")[0])
    assert HOSTILE in Page(found["runs"]).words and NASTY in Page(found["options"]).text
    assert json.loads(found["samples"])["prompts"][0]["prompt"] == NASTY  # the script shows it as text


def test_what_happens_in_a_run_is_pushed_and_nothing_else_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app, "PAUSE", 0.6)
    folder = write_run(tmp_path / "a", steps=2, sampled=(0,), going=True)
    with serving(tmp_path) as site, site.news() as news:
        assert {next(news)[0] for _ in range(7)} >= {"runs", "samples"}
        with (folder / "metrics.jsonl").open("a") as stream:
            stream.write(metrics(3, loss=0.123) + '{"step": 4, "lo')
        first = dict(next(news) for _ in range(4))
        assert first.keys() == {"runs", "numbers", "curves", "log"}  # neither options, nor samples, nor the disk
        assert "step 3  loss 0.123" in first["log"] and "training" in Page(first["runs"]).text
        write_run(tmp_path / "b")
        name, content = next(news)
        assert name == "runs" and Page(content).tags.count("input") == 2


def test_a_folder_without_a_run_is_served_and_pages_beyond_the_most_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(app, "MOST_PAGES", 1)
    with serving(tmp_path) as site:
        with site.news() as news:
            assert "no run here yet" in dict(next(news) for _ in range(7))["runs"]
            assert site.get("/events").status == 503
        monkeypatch.setattr(app, "MOST_PAGES", 2)
        with site.news() as news:
            assert next(news)


def test_nothing_is_written(served: Served):
    before = state_of(served.folder.parent)
    assert len(before) > 20
    served.site.sections(*served.keys.values())
    for path in ("/", f"/samples/{served.keys['going']}/1/0", "/samples/../x", "/x"):
        served.site.get(path)
    served.site.get("/", method="PUT")
    assert state_of(served.folder.parent) == before
