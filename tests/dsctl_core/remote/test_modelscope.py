"""Datasets of ModelScope, from a hub on this machine: paged, of one version, resumed, and without a secret shown."""

from __future__ import annotations

import os
import pickle
import threading

import fsspec
import pytest

from dsctl_core.errors import UsageError
from dsctl_core.remote import modelscope as module
from dsctl_core.remote.errors import RemoteChanged, RemoteError, RemoteMissing, RemoteUnreachable
from dsctl_core.remote.modelscope import dataset_at
from dsctl_core.remote.retry import Patience
from dsctl_core.remote.store import Entry, Remote
from tests.hub_server import Fault, LocalHub

QUICK = Patience(tries=3, first_wait=0.01, timeout=0.5)
LARGE, SMALL = os.urandom(700_000), b"of the hub itself, which knows no ranges"
ADDRESS = "modelscope://datasets/me/set"
GET = r"GET /api/v1/datasets/me/set/repo\?x/large\.bin"
TOKEN = "ms-sesame"


@pytest.fixture
def hub(modelscope: LocalHub) -> LocalHub:
    modelscope.dataset("me/set", {"x/large.bin": LARGE, "x/small.txt": SMALL, "README.md": b"# A dataset"})
    return modelscope


def of(address: str = ADDRESS) -> dict[str, Entry]:
    return {entry.name: entry for entry in Remote(address, QUICK).list()}


def test_a_read_goes_on_at_the_byte_where_it_stopped_through_cuts_and_503s_and_silence(hub: LocalHub) -> None:
    entry = of()["x/large.bin"]
    silent = threading.Event()
    hub.faults += [
        Fault("GET /storage", drop_after=300_000, times=1),
        Fault("GET /storage", status=503, times=1),
        Fault(GET, status=503, times=1),
        Fault("GET /storage", drop_after=100_000, times=1),
        Fault("GET /storage", drop_after=0, hold=silent, times=1),
    ]
    came: list[bytes] = []
    Remote(ADDRESS, QUICK).pull(entry, came.append)
    silent.set()
    assert b"".join(came) == LARGE
    starts = [asked["range"].removeprefix("bytes=").split("-")[0] for asked in hub.asked("GET /storage")]
    last = [size // module.BLOCK * module.BLOCK for size in (300_000, 100_000)]
    assert starts == ["0", *[str(last[0])] * 2, *[str(sum(last))] * 2]


@pytest.mark.parametrize("name", ["x/large.bin", "x/small.txt"])
def test_a_range_is_these_bytes_alone_also_of_a_hub_that_sends_the_whole_file(hub: LocalHub, name: str) -> None:
    hub.faults.append(Fault("small", ignore_range=True))
    content = {"x/large.bin": LARGE, "x/small.txt": SMALL}[name]
    remote = Remote(ADDRESS, QUICK)
    assert remote.read(of()[name], 7, 31) == content[7:31]
    assert remote.read(name) == content
    assert remote.stat(name) == of()[name]
    assert pickle.loads(pickle.dumps(remote)).read(name) == content


@pytest.mark.parametrize("says", ["id", "short"])
def test_what_was_listed_is_read_whatever_is_pushed_meanwhile(hub: LocalHub, says: str) -> None:
    history = hub.histories["datasets/me/set"]
    history.says = says
    before = of()
    history.push({"x/large.bin": LARGE[::-1], "x/small.txt": None})
    after = of()
    remote = Remote(ADDRESS, QUICK)
    assert [remote.read(before[name]) for name in ("x/large.bin", "x/small.txt")] == [LARGE, SMALL]
    assert remote.read(after["x/large.bin"]) == LARGE[::-1]
    assert set(before) - set(after) == {"x/small.txt"}
    assert before["README.md"] == after["README.md"]  # another file's commit changes no version


def test_of_a_hub_that_names_no_commits_a_file_that_was_changed_is_not_read(hub: LocalHub) -> None:
    history = hub.histories["datasets/me/set"]
    history.says = ""
    before = of()
    remote = Remote(ADDRESS, QUICK)
    assert remote.read(before["x/small.txt"]) == SMALL
    history.push({"x/small.txt": SMALL[::-1], "x/large.bin": LARGE[::-1]})
    for name in ("x/small.txt", "x/large.bin"):
        with pytest.raises(RemoteChanged):
            remote.read(before[name])


@pytest.mark.parametrize("says", ["id", "short", ""])
def test_a_listing_of_many_pages_has_every_file_once_and_of_one_commit(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, says: str
) -> None:
    monkeypatch.setattr(module, "PAGE", 3)
    history = hub.dataset("me/many", {f"x y/{number:02}": b"%d" % number for number in range(11)})
    history.push({"x/1": b"", "x y/00": b"0"})
    history.says = says
    pushed: list[str] = []
    hub.faults.append(Fault("me/many/repo/tree", status=503, times=1))
    root = Remote("modelscope://datasets/me/many", QUICK)
    for entry in root.list("x y"):
        if not pushed:
            pushed.append(history.push({"x y/00": None}) if says else "")
        assert root.read(entry) == b"%d" % int(entry.name[4:])
    names = [entry.name for entry in Remote("modelscope://datasets/me/many/x y", QUICK).list()]
    assert names == [f"{number:02}" for number in range(1 if says else 0, 11)]


def test_a_commit_in_the_midst_of_a_listing_without_commits_is_seen(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 3)
    history = hub.dataset("me/many", {f"{number:02}": b"" for number in range(8)})
    history.push({"00": None})  # the commit that is named wrote none of the files, so that its digits are not whole
    names = []
    with pytest.raises(RemoteChanged):
        for entry in Remote("modelscope://datasets/me/many", QUICK).list():
            names.append(entry.name)
            if len(names) == 1:
                history.push({"01": None})
    assert len(names) == 3


def test_a_revision_in_the_address_is_the_one_that_is_read(hub: LocalHub) -> None:
    history = hub.histories["datasets/me/set"]
    first = history.commits[0].id
    history.tags["of/june"] = first
    history.push({"README.md": b"# Another"})
    for revision, content in (("@of%2Fjune", b"# A dataset"), (f"@{first}", b"# A dataset"), ("", b"# Another")):
        assert Remote(f"{ADDRESS}{revision}", QUICK).read("README.md") == content
    with pytest.raises(RemoteMissing, match=r"me/set@none does not exist"):
        of(f"{ADDRESS}@none")


def test_a_private_dataset_takes_the_token_of_the_environment_and_nothing_shows_it(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tokens["datasets/me/set"] = TOKEN
    said = []
    for token in (None, "ms-open"):
        if token is not None:
            monkeypatch.setenv("MODELSCOPE_API_TOKEN", token)
        with pytest.raises(RemoteMissing, match="does not exist") as raised:
            of()
        said.append(str(raised.value.hint))
        with pytest.raises(RemoteMissing):
            of(f"{ADDRESS}/folder")
        assert Remote(ADDRESS, QUICK).stat("x/small.txt") is None
    assert all("set MODELSCOPE_API_TOKEN" in each for each in said)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    assert Remote(ADDRESS, QUICK).read(of()["x/large.bin"]) == LARGE
    assert all("authorization" not in asked and "cookie" not in asked for asked in hub.asked("GET /storage"))
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", f"{TOKEN}\n")
    with pytest.raises(UsageError, match="the token of ModelScope has") as refused:
        of()
    assert TOKEN not in f"{refused.value} {refused.value.hint}"


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("GET /storage", status=503), RemoteUnreachable),
        (Fault("GET /storage", drop_after=0), RemoteUnreachable),
        (Fault("GET /storage", status=403), RemoteError),
        (Fault(GET, status=404), RemoteMissing),
    ],
)
def test_what_does_not_pass_is_one_line_without_a_secret(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, fault: Fault, error: type[RemoteError]
) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    entry = of()["x/large.bin"]
    hub.faults.append(fault)
    with pytest.raises(error) as raised:
        Remote(ADDRESS, QUICK).read(entry)
    said = f"{raised.value} {raised.value.hint}"
    assert type(raised.value) is error
    assert f"{ADDRESS}/x/large.bin" in said
    assert "\n" not in said and TOKEN not in said and "of-the-storage" not in said


def test_a_page_that_is_refused_after_others_is_asked_for_again_and_an_answer_of_another_server_is_one_line(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 2)
    remote = Remote(ADDRESS, QUICK)
    names = []
    for entry in remote.list():
        if not names:
            hub.faults.append(Fault("repo/tree", status=403, times=1))
        names.append(entry.name)
    assert sorted(names) == ["README.md", "x/large.bin", "x/small.txt"]
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"{hub.url}/storage/page?of=")
    hub.blobs["page"] = b"<html>"
    with pytest.raises(RemoteError, match="does not answer as ModelScope does"):
        of()


@pytest.mark.parametrize("path", ["me/set", "datasets/me", "models/me/set", "datasets/me/set@", "datasets//set"])
def test_an_address_of_no_dataset_is_refused(hub: LocalHub, path: str) -> None:
    with pytest.raises(UsageError, match="is no dataset of ModelScope"):
        dataset_at(f"modelscope://{path}")
    with pytest.raises(UsageError, match="is no dataset of ModelScope"):
        of(f"modelscope://{path}")


def test_it_is_a_file_system_of_fsspec_that_others_do_not_find(hub: LocalHub) -> None:
    fs = module.ModelScopeFileSystem(1.0)
    assert fs.find(ADDRESS) == [f"datasets/me/set/{name}" for name in ("README.md", "x/large.bin", "x/small.txt")]
    assert sorted(fs.ls(ADDRESS, detail=False)) == ["datasets/me/set/README.md", "datasets/me/set/x"]
    assert fs.isdir(f"{ADDRESS}/x") and fs.isdir(ADDRESS) and not fs.exists(f"{ADDRESS}/y")
    assert fs.cat_file(f"{ADDRESS}/x/large.bin", 5, 9) == LARGE[5:9]
    assert "modelscope" not in fsspec.available_protocols()


def test_a_pointer_in_place_of_a_file_and_a_page_that_is_lost_are_no_content(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = of()["x/small.txt"]
    hub.histories["datasets/me/set"].commits[0].files["x/small.txt"] = b"version https://git-lfs.github.com/spec/v1"
    hub.faults.append(Fault("small", ignore_range=True))
    with pytest.raises(RemoteChanged):
        Remote(ADDRESS, QUICK).read(entry)
    monkeypatch.setattr(module, "PAGE", 2)
    hub.histories["datasets/me/set"].says = ""
    pages = Remote(ADDRESS, QUICK).list()
    next(pages)
    hub.faults.append(Fault("repo/tree", status=404))
    with pytest.raises(RemoteMissing):
        list(pages)
