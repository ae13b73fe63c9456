"""A dataset at an address is the same dataset: the same rows, problems, caches and losses as on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest

from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.dataset import validate
from dsctl_core.commands.train import train
from dsctl_core.data.dataset import UnifiedDataset
from dsctl_core.data.problems import DataError
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.options import CacheOptions, DatasetValidateOptions, TrainOptions
from dsctl_core.remote import store
from dsctl_core.remote.errors import RemoteUnreachable
from dsctl_core.remote.retry import Patience
from tests.dsctl_core.data.remote_runs import TRAIN, losses, write_dataset
from tests.gcs_server import GcsServer
from tests.hub_server import LocalHub
from tests.s3_server import KEYS, Fault, S3Server

BUCKET = "datasets"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("pictures"), 4)


@pytest.fixture(scope="module")
def filled(running_s3: S3Server, folder: Path) -> str:
    """The same files in a bucket."""
    running_s3.make_bucket(BUCKET)
    for path in folder.rglob("*.*"):
        running_s3.put(BUCKET, f"own/{path.relative_to(folder)}", path.read_bytes())
    return f"s3://{BUCKET}/own"


@pytest.fixture
def address(s3: S3Server, filled: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setattr(store, "Patience", lambda: Patience(tries=3, first_wait=0.01, timeout=2))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return filled


def test_training_from_an_address_through_faults_equals_training_from_the_disk_and_writes_no_secret(
    s3: S3Server, folder: Path, address: str, tmp_path: Path
) -> None:
    train(TrainOptions(dataset_base_path=folder, output_path=tmp_path / "a", **TRAIN))
    s3.faults += [
        Fault("p%201.png", cut_after=500, times=1),
        Fault("p%202.png", status=503, times=2),
        Fault("metadata.jsonl", wait=2.2, times=1),
        Fault("list-type", status=500, times=1),
    ]
    train(TrainOptions(dataset_base_path=address, output_path=tmp_path / "b", remote_cache_gb=0.001, **TRAIN))
    assert len(losses(tmp_path / "a")) == 2
    assert losses(tmp_path / "b") == losses(tmp_path / "a")
    assert (tmp_path / "b" / "step-2.safetensors").stat().st_size
    recorded = json.loads((tmp_path / "b" / "run.json").read_text())
    assert address in json.dumps(recorded)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEYS["AWS_SECRET_ACCESS_KEY"].encode() not in path.read_bytes()
    s3.requests.clear()
    train(TrainOptions(dataset_base_path=address, output_path=tmp_path / "c", **TRAIN))
    assert losses(tmp_path / "c") == losses(tmp_path / "a")
    assert s3.asked("GET /datasets/own") == []  # nothing is fetched again, nor opened to be looked at
    assert len(s3.requests) == 1  # the listing


def test_a_cache_of_an_address_is_the_cache_of_the_folder(folder: Path, address: str, tmp_path: Path) -> None:
    how = {"model": "tiny", "device": "cpu", "height": 32, "width": 32}
    make_cache(CacheOptions(dataset_base_path=folder, output_path=tmp_path / "a", **how))
    make_cache(CacheOptions(dataset_base_path=address, output_path=tmp_path / "b", **how))
    a, b = ({path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.safetensors")} for name in "ab")
    assert a and a == b


def test_validation_finds_the_same_and_decodes_nothing_twice(s3: S3Server, folder: Path, address: str) -> None:
    def found(place: str | Path, **more: Any) -> Any:
        result = validate(DatasetValidateOptions(path=place, **more))
        summary = {key: value for key, value in result.summary.items() if "seconds" not in key}
        return result.clean, summary

    here = found(folder)
    assert found(address) == here
    s3.requests.clear()
    assert found(f"{address}/metadata.jsonl") == here
    assert s3.asked("GET /datasets/own") == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"image": "sub/p 9.png", "prompt": "a"}', "did you mean"),
        ('{"image": "../own/sub/p 1.png", "prompt": "a"}', "leads out of the dataset folder"),
        ('{"image": "https://host/p.png", "prompt": "a"}', "is a URL"),
        ('{"image": "/etc/passwd", "prompt": "a"}', "is absolute"),
        ('{"image": "sub/p 1.png", "prompt" "a"}', "metadata.jsonl row 1"),
    ],
)
def test_a_bad_row_is_one_line_that_names_the_address(s3: S3Server, address: str, content: str, said: str) -> None:
    s3.put(BUCKET, "bad/metadata.jsonl", content.encode())
    s3.put(BUCKET, "bad/sub/p 1.png", b"no picture")
    result = validate(DatasetValidateOptions(path=f"s3://{BUCKET}/bad"))
    text = " ".join(result.lines())
    assert said in text
    assert "/remote/" not in text  # the local copy has no name for users


def test_a_store_that_does_not_answer_ends_the_command_and_leaves_out_no_row(
    s3: S3Server, address: str, tmp_path: Path
) -> None:
    s3.faults.append(Fault("p%202.png", status=503))
    options = TrainOptions(dataset_base_path=address, output_path=tmp_path / "o", on_bad_sample="skip", **TRAIN)
    with pytest.raises(RemoteUnreachable, match=r"own/sub/p 2\.png cannot be reached: status 503"):
        train(options)


def test_a_dataset_that_is_not_there_is_one_line(address: str, tmp_path: Path) -> None:
    for place in (f"s3://{BUCKET}/nothing", "s3://no-such-bucket/x"):
        with pytest.raises(DsctlError, match=r"(no-such-bucket|nothing).* does not exist"):
            train(TrainOptions(dataset_base_path=place, output_path=tmp_path / "o", **TRAIN))


def test_an_option_of_remote_files_without_one_and_an_address_of_another_kind_are_refused() -> None:
    with pytest.raises(UsageError, match="--remote-cache-gb has no effect"):
        TrainOptions(dataset_base_path="here", output_path="o", remote_cache_gb=1, **TRAIN)
    with pytest.raises(UsageError, match="--output-path is the address s3://b/o, and must be on this machine"):
        TrainOptions(dataset_base_path="here", output_path="s3://b/o", **TRAIN)
    with pytest.raises(UsageError, match=r"\*\*\*@bucket") as raised:
        TrainOptions(dataset_base_path="s3://me:sesame@bucket/x", output_path="o", **TRAIN)
    assert "sesame" not in str(raised.value)


NAMES = ("a?b.png", "a#1.png", "a?Signature=1.png", "a b&c=d+e.png", "p@2x.png", "k:v@w.png", "a::b.png", "what..png")


@pytest.mark.parametrize("where", ["s3", "gs", "memory", "web", "modelscope"])
def test_a_name_in_a_listing_or_a_table_may_have_any_characters(
    s3: S3Server,
    gs: GcsServer,
    modelscope: LocalHub,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    buckets = gs if where == "gs" else s3
    buckets.make_bucket("names")
    memory = fsspec.filesystem("memory")
    names = [name for name in NAMES if where != "memory" or "::" not in name]  # there it is a chain of schemes
    table = "\n".join(["image,prompt", *(f"{name},{name}" for name in names)]).encode()
    files = {f"folder/{name}": (folder / "sub" / "p 0.png").read_bytes() for name in names}
    files |= {f"folder/{name[:-4]}.txt": name.encode() for name in names}
    files |= {"table.csv": table, "folder//odd.png": b"", "folder/../odd.png": b""}
    if where == "modelscope":
        modelscope.dataset("me/names", files)
    for name, content in files.items() if where != "modelscope" else ():
        if where == "memory":
            memory.pipe_file(f"/names/{name}", content)
        else:
            buckets.put("names", name, content)
    base = f"{where}://names" if where in ("s3", "gs", "memory") else f"{s3.url}/names"
    base = "modelscope://datasets/me/names" if where == "modelscope" else base
    found = [UnifiedDataset(f"{base}/folder", f"{base}/table.csv")]
    found += [] if where == "web" else [UnifiedDataset(f"{base}/folder")]
    for dataset in found:
        assert sorted(row["prompt"] for row in dataset) == sorted(names)
        assert all(row["image"].tobytes() == dataset[0]["image"].tobytes() for row in dataset)
    (tmp_path / "outside.csv").write_text("image,prompt\n../folder/p@2x.png,a\n../../../x.png,b\n")
    dataset = UnifiedDataset(f"{base}/folder", tmp_path / "outside.csv", allow_outside=True)
    assert dataset[0]["image"].tobytes() == found[0][0]["image"].tobytes()
    with pytest.raises(DataError, match="row 2.*the path leads out of"):
        dataset[1]
