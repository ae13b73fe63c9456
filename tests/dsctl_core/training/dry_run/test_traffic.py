"""What a dry run says of reading, writing and requests, beside what the command then does."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from dsctl_core.commands import cache as cache_command
from dsctl_core.commands import train as train_command
from dsctl_core.options import CacheOptions, TrainOptions
from dsctl_core.remote import growing
from dsctl_core.stages import encode
from dsctl_core.training.dry_run import traffic
from tests.gcs_server import ObjectStore
from tests.s3_server import S3Server

NEAR = 0.15  # of the requests that were counted
MODEL: dict[str, Any] = {"model": "tiny", "device": "cpu", "height": 32, "width": 32}


def small_shards(server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make an empty bucket; no local copies; shards of two parts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    for module in (encode, traffic):
        monkeypatch.setattr(module, "parts_in_a_shard", lambda jobs: 2)
    name = f"traffic-{uuid.uuid4()}"
    server.make_bucket(name)
    return name


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket of S3."""
    return small_shards(s3, tmp_path, monkeypatch)


@pytest.fixture
def robot(repository: Path) -> Path:
    return repository / "dsctl_core" / "assets" / "datasets" / "robot"


@pytest.mark.parametrize("nodes", [None, 2])
def test_commands_that_write_a_cache_to_an_address_make_the_requests_that_were_said(
    server, robot, tmp_path, monkeypatch, nodes
):
    bucket = small_shards(server, tmp_path, monkeypatch)
    where = f"{server.scheme}://{bucket}/c"
    options = {"dataset_base_path": robot, "output_path": where, "shared": nodes is not None, **MODEL}
    said = cache_command.dry_run(CacheOptions(dry_run=True, dry_run_nodes=nodes or 1, **options)).traffic
    server.requests.clear()
    for node in range(nodes or 1):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"machine {node}"))
        made = cache_command.make_cache(CacheOptions(**options))
    assert said.requests == pytest.approx(len(server.requests), rel=NEAR)
    assert said.written_bytes == pytest.approx(made.manifest.bytes["tensors"], rel=NEAR)
    files = sum(path.stat().st_size for path in robot.glob("*.png"))
    assert said.read_bytes == pytest.approx(files * (1 + 1 / (nodes or 1)), rel=NEAR)


@pytest.mark.parametrize("block", [growing.BLOCK, 2048])
def test_a_run_from_a_cache_at_an_address_to_a_mirror_makes_the_requests_that_were_said(
    s3, bucket, robot, tmp_path, monkeypatch, block
):
    monkeypatch.setattr(growing, "FIRST", min(growing.FIRST, block // 2))
    monkeypatch.setattr(growing, "BLOCK", block)
    where = f"s3://{bucket}/c"
    made = cache_command.make_cache(CacheOptions(dataset_base_path=robot, output_path=where, **MODEL))
    run = {"from_cache": where, "output_path": tmp_path / "a", "mirror": f"s3://{bucket}/m", "lora_rank": 2}
    run |= {"num_epochs": 4, "batch_size": 2, "device": "cpu"}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    one, four = (train_command.dry_run(TrainOptions(dry_run=True, dry_run_nodes=nodes, **run)) for nodes in (1, 4))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a third"))
    s3.requests.clear()
    result = train_command.train(TrainOptions(**run))
    assert (one.steps, four.steps) == (result.steps, result.steps // 4)
    assert one.traffic.requests == pytest.approx(len(s3.requests), rel=NEAR)
    several = block < min(made.manifest.shards.values())
    assert several == (block == 2048)
    assert one.traffic.read_bytes == four.traffic.read_bytes == made.manifest.bytes["shards"]  # each has all of it


def test_a_run_from_a_dataset_at_an_address_makes_the_requests_that_were_said(s3, bucket, robot, tmp_path, monkeypatch):
    for path in robot.rglob("*.*"):
        s3.put(bucket, f"d/{path.relative_to(robot).as_posix()}", path.read_bytes())
    run = {"dataset_base_path": f"s3://{bucket}/d", "output_path": tmp_path / "a", "cache": False, "lora_rank": 2}
    run |= {"max_steps": 2, **MODEL}
    said = train_command.dry_run(TrainOptions(dry_run=True, dry_run_nodes=2, **run)).traffic
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    s3.requests.clear()
    train_command.train(TrainOptions(**run))
    assert said.requests == pytest.approx(2 * len(s3.requests), rel=NEAR)
    assert said.read_bytes == pytest.approx(sum(path.stat().st_size for path in robot.glob("*.png")), rel=NEAR)
    assert said.samples == traffic.ROWS
    assert said.reading_seconds > 0
