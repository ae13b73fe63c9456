"""Files are whole or absent, and a damaged one is named."""

import errno
import json

import pytest
import torch

from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import atomic_path, prepare_folder, write_json
from dsctl_core.files.safetensors import check_safetensors, read_safetensors, write_safetensors


def test_what_is_written_is_read_back_with_its_metadata(tmp_path):
    tensors = {"b": torch.arange(6).reshape(2, 3).float(), "a": torch.ones(2, dtype=torch.bfloat16)}
    write_safetensors(tmp_path / "x.safetensors", tensors, {"family": "some"})
    loaded, metadata = read_safetensors(tmp_path / "x.safetensors")
    assert metadata == {"format": "pt", "family": "some"}
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


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
