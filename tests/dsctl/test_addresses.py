"""What the command line prints about addresses: as they are written, and without a secret."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from tests.dsctl.running import Dsctl

BUCKET = "printed"
RUN = ("--lora-rank", "2", "--max-steps", "1", "--output-path", "out", "--dataset-base-path")
TRAIN = ("train", "--model", "tiny", *RUN)
FILES = {
    "no picture/a.png": b"x",
    "no picture/a.txt": b"a ball",
    "rows/metadata.csv": b"image,prompt\nmissing.png,a\n../up.png,b\ns3:/k:SESAME@b/x.png,c\n,d\n",
    "columns/metadata.csv": b"picture,prompt\na.png,a\n",
    "header/metadata.csv": b"image,prompt\n",
    "json/metadata.json": b"{",
    "pdf/a.pdf": b"x",
    "two/metadata.csv": b"image,prompt\na.png,a\n",
    "two/metadata.jsonl": b"{}",
    "cut/a.tar": b"x" * 700,
    "table/metadata.parquet": b"PAR1",
    "parts/train-00000-of-00002.parquet": b"PAR1",
    "folder/metadata.csv": b"image,prompt\nsub,a\n",
    "folder/sub/x.png": b"x",
    "captions/a.txt": b"a ball",
    "cache/manifest.json": b"{}",
}
SECRETS = (
    "s3://AKIA:wJalr/SESAME@bucket/x",
    " s3://AKIA:SESAME@bucket/x",
    "simplecache::s3://AKIA:SESAME@bucket/x",
    "s3://AKIA:SESAME",
    "https://host/x?X-Amz-Signature=SESAME",
)


@pytest.fixture(autouse=True)
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files in a store in the memory of this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        fsspec.filesystem("memory").pipe_file(f"/{BUCKET}/{name}", content)


@pytest.mark.parametrize("folder", [*dict.fromkeys(name.partition("/")[0] for name in FILES), "nothing", ""])
def test_an_address_is_printed_with_both_slashes(dsctl: Dsctl, folder: str) -> None:
    address = f"memory://{BUCKET}/{folder}".rstrip("/")
    commands = [("dataset", "validate", address), ("dataset", "validate", f"{address}/metadata.csv"), (*TRAIN, address)]
    for words in (*commands, ("train", "--from-cache", address, *RUN[:-1]), (*commands[0], "--json")):
        run = dsctl(*words)
        printed = run.out + run.err
        assert run.code != 0
        assert address in printed or f"/{BUCKET}" not in printed
        assert "memory:/p" not in printed
        assert "SESAME" not in printed
        assert "Traceback" not in printed


@pytest.mark.parametrize("address", SECRETS)
def test_no_secret_is_printed_whatever_option_has_it(dsctl: Dsctl, address: str) -> None:
    commands = [
        ("dataset", "validate", address),
        (*TRAIN, address),
        (*TRAIN, "x", "--dataset-metadata-path", address),
        (*TRAIN, "x", "--mirror", address),
        (*TRAIN, "x", "--dataset", f'{{"path": "{address}"}}'),
        ("train", "--from-cache", address, "--output-path", address),
        ("infer", "--model", address, "--prompt", "a", "--output", "a.png"),
        ("infer", "--model", "tiny", "--lora", address, "--prompt", "a", "--output", "a.png"),
        ("report", address),
        ("download", address),
        (address,),
        (f"--{address}",),
    ]
    for words in commands:
        run = dsctl(*words)
        assert run.code != 0
        assert "SESAME" not in run.out + run.err, words


@pytest.mark.parametrize(
    "words",
    [
        ("infer", "--model", "ADDRESS", "--prompt", "a", "--output", "a.png"),
        ("infer", "--model", "tiny", "--lora", "ADDRESS", "--prompt", "a", "--output", "a.png"),
        ("merge-lora", "--model", "tiny", "--lora", "a.safetensors", "--output", "ADDRESS"),
        ("train", "--model", "ADDRESS", *RUN, "x"),
        (*TRAIN, "x", "--lora-checkpoint", "ADDRESS"),
    ],
)
def test_what_must_be_on_this_machine_says_so(dsctl: Dsctl, words: tuple[str, ...]) -> None:
    problem, _ = dsctl(*(word.replace("ADDRESS", "s3://bucket/x.safetensors") for word in words)).fault(2)
    assert "s3://bucket/x.safetensors, and must be on this machine" in problem
