"""Shards as files: a header of whatever length is one of a safetensors file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsctl_core.cache.shards import FOLDER, examine, make_part, write_shard


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_header_whose_length_looks_like_a_pickle_is_none(tmp_path: Path, length: int) -> None:
    (tmp_path / FOLDER).mkdir()
    for letters in range(0, 0x580, 8):  # headers are padded to multiples of eight
        shard = write_shard(tmp_path, {"a": make_part({"shared.text": "x" * letters}, torch.float32)})
        if int.from_bytes(shard.read_bytes()[:8], "little") == length:
            examine(shard)
            return
        shard.unlink()
    pytest.fail(f"no header is {length} bytes long")
