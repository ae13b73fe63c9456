"""Downloads through both real clients: whole or not there, resumed, checked, and every fault is one clear line."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.dsctl_core.hub.conftest import REPO, contents
from tests.hub_server import COMMIT, Fault

SOURCES = ("huggingface", "modelscope")
BIG = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors"
SERVED = {"huggingface": "GET /storage/", "modelscope": r"GET .*/repo\?.*00001-of"}
pytestmark = pytest.mark.parametrize("source", SOURCES)


def words(source, what=REPO, *more):
    return ("download", what, "--source", source, "--local-dir", "model", "--max-workers", "1", *more)


def downloaded(folder="model"):
    """Everything in the folder that is not dsctl's own."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if ".dsctl" not in path.parts}


def test_a_repository_arrives_whole_and_a_second_time_nothing_is_fetched(hub, dsctl, source):
    run = dsctl(*words(source), "--json")
    assert run.code == 0, (run.err, [r for r, _ in hub.requests])
    assert downloaded() == contents()
    assert run.json["things"][0]["new_files"] == len(contents())
    before = len(hub.asked(SERVED[source]))
    again = dsctl(*words(source), "--json").json
    assert again["things"][0]["new_files"] == again["things"][0]["new_bytes"] == 0
    assert len(hub.asked(SERVED[source])) == before


def test_the_folder_is_printed_and_nothing_else_with_quiet(hub, dsctl, source):
    run = dsctl(*words(source), "--quiet")
    assert (run.out, run.err) == ("model\n", "")


def test_list_shows_files_and_sizes_and_downloads_nothing(hub, dsctl, source):
    listing = ("download", REPO, "--source", source, "--local-dir", "model", "--list")
    run = dsctl(*listing, "--json")
    assert run.json["things"][0]["files"] == {path: len(data) for path, data in contents().items()}
    assert not Path("model").exists()
    assert "205 kB" in dsctl(*listing).out or "200 kB" in dsctl(*listing).out


def test_a_pattern_brings_the_configs_beside_the_weights_and_nothing_else(hub, dsctl, source):
    assert dsctl(*words(source, f"{REPO}:transformer/*.safetensors")).code == 0
    assert set(downloaded()) == {path for path in contents() if path.startswith("transformer/")}


def test_include_and_exclude_choose(hub, dsctl, source):
    assert dsctl(*words(source, REPO, "--include", "*.safetensors,README.md", "--exclude", "vae/*")).code == 0
    assert set(downloaded()) == {
        "README.md",
        *(p for p in contents() if p.startswith("transformer/diff") and "index" not in p),
    }


def test_a_dropped_connection_is_resumed_where_it_broke(hub, dsctl, source):
    hub.faults.append(Fault(SERVED[source], drop_after=60_000, times=1))
    assert dsctl(*words(source, f"{REPO}:{BIG}")).code == 0
    assert downloaded()[BIG] == contents()[BIG]
    ranges = [headers["range"] for headers in hub.asked(SERVED[source]) if "range" in headers]
    assert ranges
    assert int(ranges[0].removeprefix("bytes=").rstrip("-")) >= 50_000


def test_a_killed_download_is_resumed_by_the_next_run(hub, dsctl, source):
    hub.faults.append(Fault(SERVED[source], drop_after=60_000, times=1))
    hub.faults.append(Fault(SERVED[source], status=503))
    assert dsctl(*words(source, f"{REPO}:{BIG}")).code == 1
    assert BIG not in downloaded()
    hub.faults.clear()
    assert dsctl(*words(source, f"{REPO}:{BIG}")).code == 0
    assert downloaded()[BIG] == contents()[BIG]
    assert any("range" in headers for headers in hub.asked(SERVED[source]))


def test_a_server_that_ignores_ranges_is_no_problem(hub, dsctl, source):
    hub.faults.append(Fault(SERVED[source], drop_after=60_000, times=1))
    hub.faults.append(Fault(SERVED[source], ignore_range=True))
    assert dsctl(*words(source, f"{REPO}:{BIG}")).code == 0
    assert downloaded()[BIG] == contents()[BIG]


def test_wrong_bytes_of_the_right_number_are_refused_and_not_kept(hub, dsctl, source):
    hub.faults.append(Fault(SERVED[source], corrupt=True))
    error, _ = dsctl(*words(source, f"{REPO}:{BIG}")).fault(1)
    assert "does not have the checksum" in error
    assert not [path for path in Path("model").rglob("*") if path.is_file() and path.stat().st_size > 100_000]
    hub.faults.clear()
    assert dsctl(*words(source, f"{REPO}:{BIG}")).code == 0


@pytest.mark.parametrize(
    ("status", "said", "remedy"),
    [
        (401, "token", "--token"),
        (403, "does not allow this", "permissions"),
        (404, "is not on", "--source"),
        (429, "limits the rate of requests", "wait"),
        (500, "out of order", "again"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_refusal_is_one_line_with_the_remedy_also_when_files_are_there(
    hub, dsctl, source, status, said, remedy, there
):
    if there:
        assert dsctl(*words(source)).code == 0
    hub.faults.append(Fault(r"GET /api", status=status))
    error, hint = dsctl(*words(source)).fault(1)
    assert said in error and remedy in hint
    assert REPO in error or status == 429


def test_a_repository_that_is_not_there_is_named(hub, dsctl, source):
    error, _ = dsctl(*words(source, "owner/other")).fault(1)
    assert "owner/other is not on" in error


def test_a_revision_that_is_not_there_is_an_error(hub, dsctl, source):
    error, _ = dsctl(*words(source, f"{REPO}@v9")).fault(1)
    assert f"{REPO}@v9 has no" in error


def test_a_pinned_revision_has_its_own_folder(hub, dsctl, source, monkeypatch):
    monkeypatch.setenv("DSCTL_MODEL_BASE_PATH", "base")
    run = dsctl("download", f"{REPO}@{COMMIT}:vae/", "--source", source, "--json")
    assert run.json["folder"] == f"base/{REPO}@{COMMIT}"
    assert set(downloaded(run.json["folder"])) == {p for p in contents() if p.startswith("vae/")}


def test_a_hub_that_is_out_of_order_twice_and_then_fine_is_waited_for(hub, dsctl, source):
    hub.faults.append(Fault(r"GET /api", status=503, times=2))
    hub.faults.append(Fault(SERVED[source], status=503, times=2))
    assert dsctl(*words(source)).code == 0
    assert downloaded() == contents()


def test_no_server_at_all_is_told_with_the_remedy(hub, dsctl, source, monkeypatch):
    for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    error, hint = dsctl(*words(source)).fault(1)
    assert "cannot be reached" in error
    assert "connection" in hint


def test_offline_mode_asks_nothing(hub, dsctl, source, monkeypatch):
    monkeypatch.setenv("DSCTL_SKIP_DOWNLOAD", "1")
    error, hint = dsctl(*words(source)).fault(1)
    assert "DSCTL_SKIP_DOWNLOAD" in error and "unset" in hint
    assert hub.requests == []


def test_a_disk_without_the_room_is_told_before_anything_is_fetched(hub, dsctl, source, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    error, hint = dsctl(*words(source)).fault(1)
    assert "are needed for model" in error and "--local-dir" in hint
    assert hub.asked(SERVED[source]) == []


def test_a_disk_that_fills_up_leaves_nothing_that_looks_whole(hub, dsctl, source):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        error, hint = dsctl(*words(source, f"{REPO}:{BIG}")).fault(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "no space left" in error and "free some disk space" in hint
    assert BIG not in downloaded()
    assert dsctl(*words(source, f"{REPO}:{BIG}")).code == 0
    assert downloaded()[BIG] == contents()[BIG]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:100], lambda data: data[:-1] + b"\0", lambda data: b"x" * len(data)]
)
def test_a_file_on_the_disk_that_is_not_the_hubs_is_replaced(hub, dsctl, source, damage):
    assert dsctl(*words(source)).code == 0
    path = Path("model", BIG)
    path.write_bytes(damage(path.read_bytes()))
    os.utime(path, ns=(1, 1))
    assert dsctl(*words(source)).code == 0
    assert path.read_bytes() == contents()[BIG]


def test_a_token_is_sent_to_the_hub_and_shown_nowhere(hub, dsctl, source):
    hub.faults.append(Fault(r"GET /api", status=403))
    run = dsctl(*words(source), "--token", "secret-token", "--verbose")
    assert run.code == 1
    assert "secret-token" not in run.out + run.err
    assert any("secret-token" in headers.get("authorization", "") for _, headers in hub.requests)
    assert not [path for path in Path("model").rglob("*") if path.is_file() and b"secret-token" in path.read_bytes()]


def test_a_token_does_not_go_to_where_large_files_are_kept(hub, dsctl, source):
    assert dsctl(*words(source, f"{REPO}:{BIG}"), "--token", "secret-token").code == 0
    elsewhere = [headers for headers in hub.asked("GET /storage/") if headers["host"].startswith("localhost")]
    assert len(elsewhere) == (source == "huggingface")
    assert not any("authorization" in headers for headers in elsewhere)


def test_a_dataset_is_found_among_datasets(hub, dsctl, source):
    hub.add("owner/data", {"metadata.csv": b"image,prompt\n", "a.png": b"p" * 5000}, kind="datasets")
    run = dsctl("download", "owner/data", "--dataset", "--source", source, "--json")
    assert run.code == 0, (run.err, [r for r, _ in hub.requests])
    assert set(downloaded(run.json["folder"])) == {"metadata.csv", "a.png"}


def test_a_file_that_leads_out_of_its_folder_is_refused(hub, dsctl, source):
    hub.add(REPO, {"../outside.txt": b"bad"})
    error, _ = dsctl(*words(source)).fault(1)
    assert "outside.txt" in error
    assert not Path("outside.txt").exists()


def test_notes_that_are_damaged_are_made_anew(hub, dsctl, source):
    assert dsctl(*words(source)).code == 0
    notes = Path("model/.dsctl/files.json")
    assert BIG in json.loads(notes.read_text())
    notes.write_text("{")
    run = dsctl(*words(source), "--json").json
    assert run["things"][0]["new_files"] == 0
    assert BIG in json.loads(notes.read_text())


def test_a_folder_that_cannot_be_written_is_told(hub, dsctl, source):
    Path("model").write_text("a file")
    error, _ = dsctl(*words(source)).fault(1)
    assert "model" in error and os.strerror(errno.ENOTDIR) in error or "could not be written" in error
