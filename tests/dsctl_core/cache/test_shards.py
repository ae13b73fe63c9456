"""Shards as files: a header of whatever length is one of a safetensors file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsctl_core.cache.manifest import Entry, manifest_texts, read_manifest, write_manifest
from dsctl_core.cache.reader import CachedDataset
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


def test_a_clip_of_81_frames_at_480x832_takes_the_bytes_of_its_latents_and_of_its_real_tokens(
    tmp_path: Path, whole_cache: Path
) -> None:
    tokens = 24  # of 512 that the model takes
    latents, text = torch.randn(1, 16, 21, 60, 104), torch.randn(1, tokens, 4096)
    (tmp_path / FOLDER).mkdir()
    made = {
        "latents": make_part({"shared.input_latents": latents}, torch.bfloat16),
        "text": make_part({"posi.prompt_embeds": text, "posi.prompt_embeds_mask": None}, torch.bfloat16),
    }
    shards = {key: write_shard(tmp_path, {key: part}) for key, part in made.items()}
    names = {key: path.name for key, path in shards.items()}
    sizes = {path.name: path.stat().st_size for path in shards.values()}
    entry = Entry(0, "key", {"shared.height": 480, "shared.width": 832, "shared.num_frames": 81}, tuple(made))
    write_manifest(
        tmp_path, *manifest_texts(read_manifest(whole_cache).recipe, [entry], names, sizes, sum(sizes.values()), [])
    )
    needed = 2 * (latents.numel() + text.numel())
    stored = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert needed <= stored <= 1.05 * needed
    sample = CachedDataset(tmp_path).sample(entry)
    assert torch.equal(sample["shared.input_latents"].float(), latents.bfloat16().float())
    assert torch.equal(sample["posi.prompt_embeds"].float(), text.bfloat16().float())
