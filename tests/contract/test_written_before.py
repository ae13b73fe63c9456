"""A cache and a run that dsctl 0.1 wrote before the modules were moved: later code reads them as its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.cache.verify import find_problems
from dsctl_core.commands.train import train
from dsctl_core.options import TrainOptions

WRITTEN = Path(__file__).parents[1] / "written_before"
# The losses of the six steps in one go, on an x86-64 CPU. Other processors may round the last digits otherwise.
STRAIGHT = [
    0.6791762709617615,
    0.2609148323535919,
    1.5237678289413452,
    1.1262061595916748,
    1.3489184379577637,
    0.4179302453994751,
]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A copy of the cache and of the run, which was made as `trained` does and finished at step 3."""
    shutil.copytree(WRITTEN, tmp_path / "written")
    return tmp_path / "written"


def trained(folder: Path, out: str, **more: str) -> list[float]:
    options = {"from_cache": folder / "cache", "lora_rank": 1, "lora_target_modules": ("to_q",), "device": "cpu"}
    train(TrainOptions(**options, max_steps=6, output_path=folder / out, **more))
    lines = (folder / out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_the_cache_is_whole_and_is_trained_from_with_the_same_losses(written: Path):
    assert list(find_problems(written / "cache")) == []
    assert len(CachedDataset(written / "cache").entries) == 2
    assert trained(written, "new") == pytest.approx(STRAIGHT, rel=1e-4)


def test_the_run_is_resumed_from_its_state_and_ends_as_a_straight_one(written: Path):
    before = [json.loads(line)["loss"] for line in (written / "run" / "metrics.jsonl").read_text().splitlines()]
    assert before == STRAIGHT[:3]
    assert trained(written, "run", resume="latest") == pytest.approx(STRAIGHT, rel=1e-4)
    assert (written / "run" / "step-6.safetensors").is_file()
