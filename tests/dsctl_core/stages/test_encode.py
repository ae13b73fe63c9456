"""Batches of stage one: which samples are encoded together, and that it makes no difference to what is kept."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.commands.cache import make_cache
from dsctl_core.families import families, load_family
from dsctl_core.options import CacheOptions
from dsctl_core.stages.batching import split_into_batches
from dsctl_core.stages.plan_rows import Job
from dsctl_core.training.model.open import empty_pipeline_of_family
from tests.tiny_models import write_tiny_model

PROMPTS = [
    "red",
    "a table with two green things on it",
    "blue",
    "a cat",
    "a cat on a red table",
    "green",
    "a dog",
    "old",
]


@pytest.fixture(scope="module", params=families())
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(family, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two sizes, with prompts of several lengths."""
    folder = tmp_path_factory.mktemp("data")
    lines = ["image,prompt"]
    for number, prompt in enumerate(PROMPTS):
        width = 48 if number % 3 else 32
        Image.frombytes("RGB", (width, 32), Random(number).randbytes(width * 32 * 3)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{prompt}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def encoded(model: Path, data: Path, out: Path, batch_size: int, precision: str = "no") -> CachedDataset:
    make_cache(
        CacheOptions(
            model=str(model),
            dataset_base_path=data,
            output_path=out,
            batch_size=batch_size,
            mixed_precision=precision,
            device="cpu",
        )
    )
    return CachedDataset(out)


def spied(monkeypatch: pytest.MonkeyPatch, family: str) -> list[list[str]]:
    """Return a list that every batch of prompts is put into when it is encoded."""
    shell = empty_pipeline_of_family(load_family(family), torch.float32, "cpu")
    unit: Any = next(type(unit) for unit in shell.units if "prompt" in unit.input_params)
    batches: list[list[str]] = []
    whole = unit.process

    def process(self: Any, pipe: Any, prompt: list[str]) -> Any:
        batches.append(prompt)
        return whole(self, pipe, prompt)

    monkeypatch.setattr(unit, "process", process)
    return batches


@given(st.lists(st.integers(1, 4), min_size=1, max_size=60), st.integers(1, 8))
@example([1, 2] * 9, 4)  # full batches, and one that is not, of each length
@example([3], 8)
def test_batches_have_every_job_once_and_only_what_is_alike(prompts: list[int], size: int) -> None:
    jobs = [Job(str(n), n, {"posi.prompt": ["x" * length]}) for n, length in enumerate(prompts)]
    batches = split_into_batches(jobs, size, lambda job: len(job.sample["posi.prompt"][0]))
    assert sorted(job.row for batch in batches for job in batch) == [job.row for job in jobs]
    lengths = [{len(job.sample["posi.prompt"][0]) for job in batch} for batch in batches]
    assert all(len(found) == 1 for found in lengths)
    assert max(map(len, batches)) <= size
    # No more of them than needed, in the order of the first of each, and in order inside.
    full = {length: sum({length} == found for found in lengths) for length in (1, 2, 3, 4)}
    count = {length: sum(len(job.sample["posi.prompt"][0]) == length for job in jobs) for length in full}
    assert full == {length: -(-number // size) for length, number in count.items()}
    assert [batch[0].row for batch in batches] == sorted(batch[0].row for batch in batches)
    assert all(batch == sorted(batch, key=lambda job: job.row) for batch in batches)


def test_prompts_that_would_be_padded_are_not_encoded_together(
    family: str, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = spied(monkeypatch, family)
    outputs = encoded(model, data, tmp_path / "cache", batch_size=8)
    assert sorted(prompt for batch in batches for prompt in batch) == sorted(PROMPTS)
    assert max(map(len, batches)) > 1
    length = {
        prompt: outputs.sample(entry)["posi.prompt_embeds"].shape[1]
        for prompt, entry in zip(PROMPTS, outputs.entries, strict=True)
    }
    assert all(len({length[prompt] for prompt in batch}) == 1 for batch in batches)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_what_is_kept_does_not_depend_on_the_batch_size(
    model: Path, data: Path, tmp_path: Path, precision: str
) -> None:
    alone = encoded(model, data, tmp_path / "alone", 1, precision)
    together = encoded(model, data, tmp_path / "together", 8, precision)
    assert [entry.key for entry in together.entries] == [entry.key for entry in alone.entries]
    for one, other in zip(alone.entries, together.entries, strict=True):
        kept, expected = together.sample(other), alone.sample(one)
        assert kept.keys() == expected.keys()
        for name in ("shared.input_latents", "posi.prompt_embeds"):
            torch.testing.assert_close(kept[name], expected[name], rtol=0, atol=1e-6)
