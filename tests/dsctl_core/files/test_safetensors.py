"""A safetensors header is checked before it is trusted, and a file of another format is named by its content."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from dsctl_core.errors import DsctlError
from dsctl_core.files import safetensors
from dsctl_core.files.safetensors import check_safetensors, read_safetensors, safetensors_header, write_safetensors

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(path, header, size=16):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))


BAD_HEADERS = [
    ([], "its header is a list"),
    (b"nope", "its header is not JSON"),
    (b"[" * 5000, "in its header, it is nested more than 64 levels deep"),
    (b'{"a": 1, "a": 2}', "in its header, it has the key 'a' twice"),
    ({"__metadata__": []}, "__metadata__: it is a list, not an object"),
    ({"__metadata__": {"a": 1}}, "__metadata__: a is the number 1, not text"),
    ({"a": []}, "in its header: a is a list, not an object"),
    ({"a": {**F32, "dtype": 1}}, "a.dtype is the number 1, not text"),
    ({"a": {**F32, "dtype": "Q4_K"}}, "a has the dtype 'Q4_K', which is unknown"),
    ({"a": {**F32, "shape": "2"}}, "a.shape is the text '2', not a list"),
    ({"a": {**F32, "shape": [-2]}}, "a.shape[0] is the number -2"),
    ({"a": {**F32, "data_offsets": ["0", "8"]}}, "a.data_offsets[0] is the text '0', not a whole number"),
    ({"a": {**F32, "data_offsets": [0]}}, "a.data_offsets is a list, which"),
    ({"a": {"dtype": "F32", "shape": [2]}}, "it lacks the field a.data_offsets"),
    ({"a": {**F32, "shape": [10**9, 10**9]}}, "a is F32 of shape (1000000000, 1000000000), but has 8 bytes"),
    ({"a": {**F32, "data_offsets": [8, 0]}}, "a is F32 of shape (2,), but has -8 bytes"),
    ({"a": F32, "b": F32}, "b begins at byte 0, which overlaps the tensor before it"),
    ({"a": F32, "b": {**F32, "data_offsets": [12, 20]}}, "b begins at byte 12, which leaves a gap"),
    ({"a": F32}, "is damaged: "),
]


@pytest.mark.parametrize(("header", "message"), BAD_HEADERS, ids=[message[:40] for _, message in BAD_HEADERS])
def test_a_header_that_is_none_is_refused_with_the_file_and_the_tensor(tmp_path, header, message):
    write(tmp_path / "x.safetensors", header)
    with pytest.raises(DsctlError) as caught:
        read_safetensors(tmp_path / "x.safetensors")
    assert str(tmp_path / "x.safetensors") in caught.value.problem
    assert message in caught.value.problem


def test_every_dtype_and_an_empty_tensor_are_accepted(tmp_path):
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)
    kinds += (torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64)
    tensors = {f"t{n}": torch.zeros(3, 2, dtype=kind) for n, kind in enumerate(kinds)} | {"e": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "x.safetensors")
    assert set(safetensors_header(tmp_path / "x.safetensors")[0]) == set(tensors)
    assert set(read_safetensors(tmp_path / "x.safetensors")[0]) == set(tensors)


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.safetensors", b"x")


FOREIGN = {
    "GGUF": (lambda path: path.write_bytes(b"GGUF\3\0\0\0" + bytes(100)), "a GGUF file"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "a pickle, which can run code"),
    "torch": (lambda path: torch.save({"a": torch.ones(1)}, path), "a pickle in a zip archive"),
    "old torch": (lambda path: torch.save({"a": 1}, path, _use_new_zipfile_serialization=False), "a pickle, which"),
    "zip": (zipped, "a zip archive"),
    "LFS": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid"),
        "Git LFS pointer",
    ),
    "page": (lambda path: path.write_text("<!DOCTYPE html><html>"), "a web page"),
    "HDF5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "an HDF5 file"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".data"])
@pytest.mark.parametrize(("write_it", "message"), FOREIGN.values(), ids=FOREIGN)
def test_another_format_is_named_whatever_the_name_of_the_file(tmp_path, write_it, message, suffix):
    path = tmp_path / f"x{suffix}"
    write_it(path)
    with pytest.raises(DsctlError, match=f"is {message}" if message[0] == "a" else message) as caught:
        check_safetensors(path)
    assert caught.value.hint


def test_a_safetensors_file_is_read_whatever_its_name(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "x.bin")
    assert torch.equal(read_safetensors(tmp_path / "x.bin")[0]["a"], torch.ones(2))


def test_the_header_of_a_file_is_read_once_and_again_after_any_change_of_the_file(tmp_path, monkeypatch):
    path, reads = tmp_path / "a.safetensors", []
    monkeypatch.setattr(safetensors, "refuse_foreign", reads.append)

    def header(value: float, name: str) -> list[str]:
        write_safetensors(path, {name: torch.full((4,), value)}, {})
        os.utime(path, ns=(0, 0))  # a change that keeps the size and the time of the last change
        return [key for key in safetensors_header(path)[0] if key != "__metadata__"]

    assert (header(0.0, "a"), header(0.0, "b"), len(reads)) == (["a"], ["b"], 2)  # just changed: always read
    monkeypatch.setattr(safetensors, "SETTLED", 0.0)
    assert header(0.0, "c") == ["c"]
    for _ in range(3):
        safetensors_header(path)
    assert len(reads) == 3
    assert header(0.0, "d") == ["d"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DsctlError, match="damaged"):
        safetensors_header(path)
