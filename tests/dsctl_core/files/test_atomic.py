"""Files are whole or absent, and a damaged one is named."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch

from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import atomic_folder, atomic_path, is_temporary, prepare_folder, write_json
from dsctl_core.files.safetensors import check_safetensors, read_safetensors, write_safetensors


def test_what_is_written_is_read_back_with_its_metadata(tmp_path):
    tensors = {"b": torch.arange(6).reshape(2, 3).float(), "a": torch.ones(2, dtype=torch.bfloat16)}
    write_safetensors(tmp_path / "x.safetensors", tensors, {"family": "some"})
    loaded, metadata = read_safetensors(tmp_path / "x.safetensors")
    assert metadata == {"format": "pt", "family": "some"}
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("name", ["step-2.safetensors", ".step-2.safetensors.0123abcd.tmp"])
def test_all_that_a_kill_in_a_save_can_leave_has_a_name_of_ours(tmp_path, monkeypatch, name):
    def save_file(tensors, path, metadata):
        Path(path).with_name(".tmp0lF0sd").write_bytes(b"weights")  # as safetensors 0.8 names its own
        seen.extend(path.name for path in tmp_path.iterdir())

    seen = []
    monkeypatch.setattr("safetensors.torch.save_file", save_file)
    write_safetensors(tmp_path / name, {"x": torch.ones(2)}, {})
    assert len(seen) == 1 and all(is_temporary(tmp_path / each, r"step-2\.safetensors") for each in seen)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("killed")
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_named_and_nothing_is_left(tmp_path, code):
    with pytest.raises(DsctlError, match="no space left") as caught, atomic_path(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise OSError(code, "full")
    assert str(tmp_path / "x") in caught.value.problem and caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_folder_below_a_file_cannot_be_prepared(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DsctlError, match="could not be written"):
        prepare_folder(tmp_path / "file" / "out")


@pytest.mark.parametrize("keep", [0, 5, 8, 40, -1])
def test_a_safetensors_file_cut_anywhere_is_refused(tmp_path, keep):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"weight": torch.ones(100)}, {})
    check_safetensors(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DsctlError, match=r"x\.safetensors"):
        check_safetensors(path)


def test_a_safetensors_file_with_bytes_after_its_end_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"weight": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(DsctlError, match="damaged"):
        check_safetensors(path)


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin", ".pth"])
def test_a_pickle_is_refused_unread(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    torch.save({"weight": torch.ones(1)}, path)
    with pytest.raises(DsctlError, match="pickle"):
        check_safetensors(path)


def entries(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_folder_gets_its_name_when_all_of_it_is_written(tmp_path: Path):
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "a").write_text("1")
        assert not (tmp_path / "out").exists()
        assert temporary.parent == tmp_path
    assert entries(tmp_path) == {"out/a": "1"}


@pytest.mark.parametrize("before", [None, "empty", "full"])
def test_a_folder_whose_writing_fails_leaves_what_was_there(tmp_path: Path, before: str | None):
    if before is not None:
        (tmp_path / "out").mkdir()
    if before == "full":
        (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(KeyError), atomic_folder(tmp_path / "out", remove=shutil.rmtree) as temporary:
        (temporary / "a").write_text("1")
        raise KeyError
    assert entries(tmp_path) == ({"out/old": "old"} if before == "full" else {})
    assert [p.name for p in tmp_path.iterdir()] == ([] if before is None else ["out"])


def test_a_folder_replaces_an_empty_one_and_another_only_when_told_how(tmp_path: Path):
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "a").write_text("1")
    with pytest.raises(DsctlError, match="out could not be written"), atomic_folder(tmp_path / "out") as temporary:
        (temporary / "b").write_text("2")
    assert entries(tmp_path) == {"out/a": "1"}
    with atomic_folder(tmp_path / "out", remove=shutil.rmtree) as temporary:
        (temporary / "b").write_text("2")
    assert entries(tmp_path) == {"out/b": "2"}


def test_a_full_disk_while_a_folder_is_written_names_the_folder(tmp_path: Path):
    with pytest.raises(DsctlError, match="out could not be written: no space left"), atomic_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []
