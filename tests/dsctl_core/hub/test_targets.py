"""Names from a repository: every one that may not be a file is refused in one line, before anything is fetched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsctl_core.errors import DsctlError
from dsctl_core.hub.remote import RemoteFile
from dsctl_core.hub.targets import refuse_alike, safe_path, targets
from tests.cases import try_each
from tests.dsctl_core.hub.conftest import REPO

SOURCES = ("huggingface", "modelscope")
NAMES = {
    "../a": "leads out of the folder",
    "/etc/passwd": "leads out of the folder",
    "a\\b": "leads out of the folder",
    "c:/x": "leads out of the folder",
    "": "leads out of the folder",
    ".": "leads out of the folder",
    "a\nb": "control characters",
    "a\x1b[2Jb": "control characters",
    "a\x00b": "control characters",
    "a\u2028b": "control characters",
    "a\udcffb": "control characters",
    ".git/hooks/post-checkout": "written into .git",
    "sub/.GIT/config": "written into .GIT",
    ".git./config": "written into .git.",
    ".dsctl/files.json": "written into .dsctl",
    ".DSCTL/lock": "written into .DSCTL",
    "n" * 300: "a name of 300 bytes",
    "é" * 120: "a name of 240 bytes",
}


def words(source: str, *more: str) -> tuple[str, ...]:
    return ("download", REPO, "--source", source, "--local-dir", "model", "--max-workers", "1", *more)


def test_a_name_that_may_not_be_a_file_is_refused_in_one_printable_line():
    def check(name: str, why: str) -> None:
        with pytest.raises(DsctlError) as caught:
            targets([name], Path("folder"))
        assert why in caught.value.problem
        assert caught.value.problem.isprintable()

    try_each(NAMES.items(), check, count=len(NAMES))


def test_windows_refuses_the_names_of_its_devices_and_others_do_not():
    for name in ("nul", "CON.txt", "a/Lpt1.json", "end.", "end "):
        with pytest.raises(DsctlError, match="Windows reserves"):
            safe_path(name, windows=True)
        assert str(safe_path(name, windows=False)) == name


@pytest.mark.parametrize("paths", [["a", "a/b"], ["a/b/c", "a"], ["x", "d/e/f", "d/e"]])
def test_a_file_beside_a_folder_of_its_name_is_refused(paths):
    with pytest.raises(DsctlError, match="which would be its folder"):
        targets(paths, Path("folder"))


def test_names_that_differ_in_case_are_refused_where_the_disk_ignores_it():
    refuse_alike(["a.txt", "b.txt", "A/a.txt"])
    for other in ("A.txt", "a.TXT"):
        with pytest.raises(DsctlError, match="the same file on this disk"):
            refuse_alike(["a.txt", other])


@given(st.text(max_size=300) | st.lists(st.sampled_from([*"ab./\\: \x1b\n", "..", ".git", ".dsctl"])).map("".join))
def test_any_name_is_a_path_below_the_folder_or_one_printable_line(name):
    refused, target = None, Path()
    try:
        (target,) = targets([name], Path("folder"))
    except DsctlError as error:
        refused = error
    if refused is not None:
        assert refused.problem.isprintable() and refused.hint
    else:
        inside = Path(os.path.normpath(target)).relative_to("folder")
        assert inside.parts and not {".git", ".dsctl"} & set(inside.parts)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", [".git/hooks/post-checkout", ".dsctl/files.json", "n" * 300])
def test_a_repository_with_such_a_name_is_refused_and_the_rest_of_it_can_be_had(hub, dsctl, source, name):
    hub.add(REPO, {name: b"bad", "README.md": b"good"})
    error, hint = dsctl(*words(source)).fault(1)
    assert "the repository has a file" in error
    assert "--exclude" in hint
    assert not Path("model").exists()
    pattern = f"{name[:4]}*"
    assert dsctl(*words(source, "--exclude", pattern)).code == 0
    assert Path("model/README.md").read_bytes() == b"good"


@pytest.mark.parametrize("source", SOURCES)
def test_nothing_is_written_through_a_link_out_of_the_folder(hub, dsctl, source):
    hub.add(REPO, {"sub/deep/a.txt": b"new", "b.txt": b"b"})
    Path("outside/deep").mkdir(parents=True)
    Path("model").mkdir()
    Path("model/sub").symlink_to(Path("outside").absolute())
    error, _ = dsctl(*words(source)).fault(1)
    assert "model/sub is a link out of model" in error
    Path("outside/deep/a.txt").write_bytes(b"new")  # what is there already and right is only read
    assert dsctl(*words(source)).code == 0
    assert [path.name for path in Path("outside/deep").iterdir()] == ["a.txt"]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("there", ["file", "link", "folder", "parent", "notes"])
def test_what_a_download_did_not_bring_is_not_replaced(hub, dsctl, source, there):
    hub.add(REPO, {"a/b.txt": b"theirs"})
    mine, target = Path("mine.txt"), Path("model/a/b.txt")
    mine.write_bytes(b"mine")
    Path("elsewhere").mkdir()
    (target.parent.parent if there in ("parent", "notes") else target.parent).mkdir(parents=True)
    if there == "file":
        target.write_bytes(b"mine")
    elif there == "link":
        target.symlink_to(mine.absolute())
    elif there == "folder":
        target.mkdir()
    elif there == "parent":
        target.parent.write_bytes(b"mine")
    else:
        Path("model/.dsctl").symlink_to(Path("elsewhere").absolute())
    before = {path: path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}
    dsctl(*words(source)).fault(1)
    after = {path: path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}
    assert {path: content for path, content in after.items() if ".dsctl" not in path.parts[1:2]} == {
        path: content for path, content in before.items() if ".dsctl" not in path.parts[1:2]
    }
    assert list(Path("elsewhere").iterdir()) == []


@pytest.mark.parametrize("source", SOURCES)
def test_downloaded_files_have_the_mode_of_new_files(hub, dsctl, source):
    before = os.umask(0o027)
    try:
        assert dsctl(*words(source)).code == 0
    finally:
        os.umask(before)
    files = [path for path in Path("model").rglob("*") if path.is_file() and path.name != "lock"]
    assert len(files) > 3
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


def test_a_file_that_the_hub_lists_twice_is_fetched_once():
    from dsctl_core.hub.fetch import fetch

    class Twice:
        name = "twice"

        def fetch(self, repo_id, repo_type, revision, files, folder, *, max_workers, advance, done):
            assert len(files) == 1
            (folder / "a").write_bytes(b"a")
            done(files[0])

    assert fetch(Twice(), REPO, "main", [RemoteFile("a", 1), RemoteFile("a", 1)], Path("model")).new_files == 1
