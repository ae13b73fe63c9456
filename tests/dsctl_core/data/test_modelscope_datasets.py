"""A dataset of ModelScope at its address is the dataset of the same files on the disk; so is a cache there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.dataset import validate
from dsctl_core.commands.train import dry_run, train
from dsctl_core.errors import DsctlError
from dsctl_core.options import CacheOptions, DatasetValidateOptions, TrainOptions
from dsctl_core.remote import store
from dsctl_core.remote.errors import RemoteError, RemoteUnreachable
from dsctl_core.remote.retry import Patience
from tests.dsctl_core.data.remote_runs import TRAIN, losses, write_dataset
from tests.hub_server import Fault, LocalHub

ADDRESS = "modelscope://datasets/me/set/own"
TOKEN = "ms-sesame"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("pictures"), 6)


def files_in(folder: Path, below: str = "own") -> dict[str, bytes]:
    return {f"{below}/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def hub(modelscope: LocalHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    """A hub with the dataset, which is private."""
    monkeypatch.setattr(store, "Patience", lambda: Patience(tries=3, first_wait=0.01, timeout=2))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    modelscope.dataset("me/set", {"README.md": b"# A dataset", **files_in(folder)})
    modelscope.tokens["datasets/me/set"] = TOKEN
    return modelscope


def test_training_from_the_hub_through_faults_and_a_commit_equals_training_from_the_disk_and_writes_no_secret(
    hub: LocalHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(TrainOptions(dataset_base_path=folder, output_path=tmp_path / "a", **TRAIN))
    hub.faults += [
        Fault("p 1.png", status=503, times=2),
        Fault("GET /storage", drop_after=500, times=2),
        Fault("metadata.jsonl", status=500, times=1),
        Fault("repo/tree", status=502, times=1),
    ]
    history, real = hub.histories["datasets/me/set"], hub.fault

    def pushed_meanwhile(request: str) -> Fault | None:
        if "p 0.png" in request and len(history.commits) == 1:
            history.push({f"own/sub/p {number}.png": b"no picture" for number in range(6)})
        return real(request)

    monkeypatch.setattr(hub, "fault", pushed_meanwhile)
    train(TrainOptions(dataset_base_path=ADDRESS, output_path=tmp_path / "b", remote_cache_gb=0.001, **TRAIN))
    assert len(history.commits) == 2
    assert losses(tmp_path / "b") == losses(tmp_path / "a")
    assert ADDRESS in (tmp_path / "b" / "run.json").read_text()
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()
    history.push(files_in(folder))  # the same content, by another commit
    hub.requests.clear()
    first = f"modelscope://datasets/me/set@{history.commits[0].id}/own"
    train(TrainOptions(dataset_base_path=first, output_path=tmp_path / "c", **TRAIN))
    assert losses(tmp_path / "c") == losses(tmp_path / "a")


def test_a_second_start_asks_for_the_listing_alone_and_validation_finds_the_same(hub: LocalHub, folder: Path) -> None:
    def found(place: str | Path, **more: Any) -> Any:
        result = validate(DatasetValidateOptions(path=place, **more))
        return result.clean, {key: value for key, value in result.summary.items() if "seconds" not in key}

    here = found(folder)
    assert found(ADDRESS) == here
    hub.requests.clear()
    assert found(f"{ADDRESS}/metadata.jsonl") == here
    assert hub.asked("GET /storage") + hub.asked(r"/repo\?") == []
    hub.requests.clear()
    assert found(ADDRESS, workers=2, recheck=True) == here
    assert len(hub.asked("repo/tree")) <= 12  # of processes of their own, one for each folder, not for each file


def test_a_cache_on_the_hub_trains_as_the_one_on_the_disk_and_a_cache_of_the_hub_is_that_of_the_disk(
    hub: LocalHub, folder: Path, tmp_path: Path
) -> None:
    how = {"model": "tiny", "device": "cpu", "height": 32, "width": 32}
    make_cache(CacheOptions(dataset_base_path=folder, output_path=tmp_path / "a", **how))
    make_cache(CacheOptions(dataset_base_path=ADDRESS, output_path=tmp_path / "b", **how))
    a, b = ({path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.safetensors")} for name in "ab")
    assert a and a == b
    hub.dataset("me/caches", files_in(tmp_path / "a", "one"))
    hub.faults.append(Fault("GET /storage", drop_after=1000, times=2))
    run = {"lora_rank": 2, "max_steps": 3, "batch_size": 2, "device": "cpu"}
    where = "modelscope://datasets/me/caches/one"
    for name, cache in (("c", tmp_path / "a"), ("d", where)):
        train(TrainOptions(from_cache=cache, output_path=tmp_path / name, **run))
    assert losses(tmp_path / "c") == losses(tmp_path / "d")
    with pytest.raises(RemoteError, match="cannot be written to"):
        make_cache(CacheOptions(dataset_base_path=folder, output_path=where, **how))


def test_a_dry_run_says_the_requests_that_are_made(hub: LocalHub, tmp_path: Path, monkeypatch) -> None:
    run = {**TRAIN, "dataset_base_path": ADDRESS, "output_path": tmp_path / "a", "cache": False}
    said = dry_run(TrainOptions(dry_run=True, **run)).traffic
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    hub.requests.clear()
    train(TrainOptions(**run))
    assert said.requests == pytest.approx(len(hub.asked("/api/v1/")), abs=1)


def test_what_is_wrong_is_one_line_with_what_to_do(hub: LocalHub, tmp_path: Path, monkeypatch) -> None:
    def hint(place: str, said: str, kind: type[DsctlError] = DsctlError) -> str:
        with pytest.raises(kind, match=said) as raised:
            train(TrainOptions(dataset_base_path=place, output_path=tmp_path / "o", **TRAIN))
        assert "\n" not in f"{raised.value}{raised.value.hint}"
        return str(raised.value.hint)

    assert "path given with" in hint("modelscope://datasets/me/set/none", "set/none does not exist")
    assert "MODELSCOPE_API_TOKEN" in hint("modelscope://datasets/me/none", "me/none does not exist")
    assert "MODELSCOPE_API_TOKEN" in hint("modelscope://datasets/me/set@none/own", "set@none/own does not exist")
    assert "datasets/OWNER/NAME" in hint("modelscope://me/set", "modelscope://me/set is no dataset of ModelScope")
    assert "environment" in hint("modelscope://me:sesame@datasets/me/set", r"\*\*\*@datasets/me/set has a user")
    hub.faults.append(Fault(r"p 2\.png", status=503))
    hint(ADDRESS, r"own/sub/p 2\.png cannot be reached: status 503", RemoteUnreachable)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "another")
    assert "MODELSCOPE_API_TOKEN" in hint(ADDRESS, "does not exist")
