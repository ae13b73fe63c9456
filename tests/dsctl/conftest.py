"""The command line as a function, and what it can be run on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dsctl.app import main
from tests.dsctl.running import Run


@pytest.fixture
def dsctl(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Run `dsctl` with the words given, in this process."""

    def run(*words: object) -> Run:
        capsys.readouterr()
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        return Run(code, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random model."""
    from tests.tiny_models import write_tiny_model

    return write_tiny_model("qwen-image", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def files() -> None:
    """A dataset of one picture, and what is no picture, no folder and no LoRA."""
    from PIL import Image

    Path("data").mkdir()
    Image.new("RGB", (32, 32), "red").save("data/a.png")
    Path("data/metadata.csv").write_text("image,prompt\na.png,a red square\n", encoding="utf-8")
    Path("file.txt").write_text("not what you think", encoding="utf-8")
    Path("cut.safetensors").write_bytes(b"\x40\x00\x00\x00\x00\x00\x00\x00{")
    Path("cut.png").write_bytes(Path("data/a.png").read_bytes()[:60])
    Image.new("L", (16, 16), "white").save("small.png")
