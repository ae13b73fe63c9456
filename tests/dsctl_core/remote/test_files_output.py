"""Files that commands write at an address: whole, those of a folder to the byte, and over nothing of others."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from dsctl_core.commands import infer as inference
from dsctl_core.commands.infer import infer
from dsctl_core.commands.lora import convert
from dsctl_core.commands.merge_lora import merge
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files.png import write_png
from dsctl_core.lora import LoraLayer, save_lora
from dsctl_core.media.made_file import DRAWN
from dsctl_core.options import InferOptions
from dsctl_core.options.lora_tools import LoraConvertOptions, MergeLoraOptions
from dsctl_core.remote.errors import RemoteError, RemoteExists
from dsctl_core.remote.files_output import files_output
from dsctl_core.remote.store import Remote
from tests.s3_server import Fault, S3Server
from tests.tiny_models import write_tiny_model

ABOUT = {"prompt": "a cat", "seed": 1, "dsctl_version": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("qwen-image", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    name = f"files-{uuid.uuid4()}"
    s3.make_bucket(name)
    return name


def there(bucket: str) -> dict[str, bytes]:
    remote = Remote(f"s3://{bucket}")
    return {entry.name: remote.read(entry) for entry in remote.list()}


def unordered(content: bytes) -> object:
    """Return what is in a file, without the time; safetensors writes its metadata in any order."""
    if content[8:9] != b"{":
        return content
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    del header["__metadata__"]["modelspec.date"]
    return header, content[end:]


def asked(model: Path, **values: object) -> InferOptions:
    small = {"height": 32, "width": 48, "num_inference_steps": 1, "device": "cpu", "prompt": "a cat"}
    return InferOptions(**{"model": str(model), **small, **values})


def test_pictures_at_an_address_are_those_of_a_folder_and_replace_their_like(
    model: Path, bucket: str, tmp_path: Path
) -> None:
    infer(asked(model, num_images=2, grid=True, output=tmp_path / "out" / "a.png"))
    expected = {f"out/{path.name}": path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for _ in range(2):  # the second time over those of the first
        result = infer(asked(model, num_images=2, grid=True, output=f"s3://{bucket}/out/a.png"))
        assert there(bucket) == expected
    assert [str(file) for file in result.files] == [f"s3:/{bucket}/out/a-00{number}.png" for number in (1, 2)]
    infer(asked(model, output=f"s3://{bucket}/b.png"))
    assert there(bucket)["b.png"] == there(bucket)["out/a-001.png"]


def test_nothing_of_others_is_replaced_and_nothing_is_loaded_before_that_is_known(
    model: Path, bucket: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "load", lambda *_: pytest.fail("weights were loaded"))
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    write_png(tmp_path / "sample.png", Image.new("RGB", (8, 8)), {**ABOUT, "step": 3})
    for name in ("photo.png", "sample.png"):
        s3.put(bucket, name, (tmp_path / name).read_bytes())
        with pytest.raises(DsctlError, match=f"s3://{bucket}/{name} is there already and is not a picture or clip of"):
            infer(asked(model, output=f"s3://{bucket}/{name}"))
    s3.put(bucket, "a-002.png", b"no picture")
    with pytest.raises(DsctlError, match=f"s3://{bucket}/a-002.png is there already"):
        infer(asked(model, num_images=2, output=f"s3://{bucket}/a.png"))
    for address, problem in (
        ("s3://a.png", "must be on this machine|names no file"),
        ("https://host/a.png", "https:// is read, not written"),
        (f"s3://{bucket}-not/a.png", "does not exist"),
    ):
        with pytest.raises(DsctlError, match=problem):
            infer(asked(model, output=address))
    s3.faults.append(Fault("PUT", status=403))
    with pytest.raises(RemoteError, match="the store refuses these credentials"):
        infer(asked(model, output=f"s3://{bucket}/new.png"))
    s3.faults.clear()
    assert sorted(there(bucket)) == ["a-002.png", "photo.png", "sample.png"]


@pytest.mark.parametrize("where", ["s3", "memory"])
@pytest.mark.parametrize("before", [False, True])
def test_what_another_writer_has_put_there_meanwhile_stays(
    bucket: str, tmp_path: Path, where: str, before: bool
) -> None:
    remote = Remote(f"{where}://{bucket}")
    write_png(tmp_path / "a.png", Image.new("RGB", (8, 8)), ABOUT)
    if before:
        remote.put("x/a.png", tmp_path / "a.png")
    place = files_output(Path(f"{where}://{bucket}/x/a.png"))
    place.require_replaceable("a.png", DRAWN, "--output")

    def write() -> None:
        with place.writing("a.png") as path:
            write_png(path, Image.new("RGB", (9, 9)), ABOUT)
            remote.put("x/a.png", b"of another")

    if before and not remote.conditional:
        write()  # such a store has no way to tell
        return
    with pytest.raises((RemoteExists, RemoteError), match="x/a.png"):
        write()
    assert remote.read("x/a.png") == b"of another"


def test_a_write_that_fails_leaves_nothing(bucket: str) -> None:
    place = files_output(Path(f"s3://{bucket}/x/a.png"))
    place.prepare()
    with pytest.raises(ValueError, match="in the midst"), place.writing("a.png") as path:
        path.write_bytes(b"half")
        raise ValueError("in the midst")
    assert there(bucket) == {}


@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_loras_at_an_address_are_those_of_a_folder_and_must_be_new(bucket: str, tmp_path: Path, form: str) -> None:
    layer = LoraLayer(torch.ones(2, 8), torch.ones(8, 2), 1.0)
    lora = save_lora(
        tmp_path / "in.safetensors",
        {"dit": {"transformer_blocks.0.attn.to_q": layer}},
        {"family": "qwen-image"},
        form="diffusers",
    )
    name = "made" if form == "peft" else "made.safetensors"
    commands: list[Callable[[Path | str], object]] = [
        lambda output: convert(LoraConvertOptions(file=lora, to=form, output=output)),
        lambda output: merge(MergeLoraOptions(lora=[str(lora)], into="lora", lora_format=form, output=output)),
    ]
    for number, command in enumerate(commands):
        command(tmp_path / str(number) / name)
        command(f"s3://{bucket}/{number}/{name}")
        with pytest.raises(DsctlError, match=f"s3://{bucket}/{number}/{name} already exists"):
            command(f"s3://{bucket}/{number}/{name}")
    files = [path for number in range(2) for path in (tmp_path / str(number)).rglob("*") if path.is_file()]
    expected = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in files}
    assert {name: unordered(content) for name, content in there(bucket).items()} == {
        name: unordered(content) for name, content in expected.items()
    }
    with pytest.raises(UsageError, match="--output is the address s3://b/m, and must be on this machine"):
        MergeLoraOptions(lora=[str(lora)], model="tiny", output="s3://b/m")


def test_the_metadata_at_an_address_is_that_of_the_picture(model: Path, bucket: str, tmp_path: Path) -> None:
    infer(asked(model, seed=4, output=f"s3://{bucket}/a.png"))
    (tmp_path / "a.png").write_bytes(there(bucket)["a.png"])
    with Image.open(tmp_path / "a.png") as picture:
        assert json.loads(picture.text["parameters"])["seed"] == 4  # type: ignore[attr-defined]
