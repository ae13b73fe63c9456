"""Both hubs' clients, pointed at the local hub, without waiting between tries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsctl.app import main
from tests.dsctl.running import Run
from tests.hub_server import LocalHub, local_hub

REPO = "owner/name"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    """A hub with one model, reached by either client."""
    import time

    from huggingface_hub import constants, file_download
    from modelscope_hub import _download

    with local_hub() as running:
        monkeypatch.delenv("DSCTL_SKIP_DOWNLOAD")
        for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
            monkeypatch.setenv(name, running.url)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / ".home" / "cache"))
        monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / ".home" / "modelscope"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / ".home" / "hf"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / ".home" / "token"))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
        assert file_download.constants is constants
        monkeypatch.setattr(_download, "DOWNLOAD_RETRY_MAX_DELAY_SECONDS", 0)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        running.add(REPO, contents())
        yield running


def contents() -> dict[str, bytes]:
    """The files of a model: weights in shards with their index and config, a tokenizer, and odd ones out."""
    weights = {f"transformer/diffusion_pytorch_model-0000{n}-of-00002.safetensors": shard(n) for n in (1, 2)}
    return {
        "README.md": b"# A model\n",
        "model_index.json": json.dumps({"_class_name": "QwenImagePipeline"}).encode(),
        **weights,
        "transformer/config.json": b'{"_class_name": "QwenImageTransformer2DModel"}',
        "transformer/diffusion_pytorch_model.safetensors.index.json": b'{"weight_map": {}}',
        "tokenizer/tokenizer.json": b'{"vocab": 1}',
        "vae/diffusion_pytorch_model.safetensors": shard(3),
    }


def shard(number: int) -> bytes:
    """A whole safetensors file of 200 kB."""
    size = 200_000
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes((number * i) % 251 for i in range(size))


@pytest.fixture
def dsctl(capsys: pytest.CaptureFixture[str]):
    """Run `dsctl` with the words given, in this process."""

    def run(*words: object) -> Run:
        capsys.readouterr()
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        return Run(code, printed.out, printed.err)

    return run
