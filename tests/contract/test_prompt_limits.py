"""Every family declares how long its prompts may be: its own unit cuts exactly those that are longer."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path

import pytest

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.families import families, pipeline_class
from dsctl_core.families.prompt_lengths import find_cut_prompts
from dsctl_core.families.resolve import resolve_model
from dsctl_core.family import Family
from dsctl_core.pipeline import BasePipeline
from dsctl_core.units import PipelineUnit
from tests.tiny_models import write_tiny_model

FAMILIES = list(families().values())


LIMITED = [family for family in FAMILIES if family.prompt_limit is not None]
UNLIMITED = [family for family in FAMILIES if family.prompt_limit is None]


def prompt_unit(pipe: BasePipeline) -> PipelineUnit:
    (unit,) = (unit for unit in pipe.units if "prompt" in inspect.signature(unit.process).parameters)
    return unit


def test_a_limit_names_a_tokenizer_of_its_family() -> None:
    assert {"qwen-image", "flux1", "flux2", "z-image", "wan"} <= {family.name for family in LIMITED}
    for family in LIMITED:
        assert family.prompt_limit is not None
        assert family.prompt_limit.reader in [reader.name for reader in family.readers]


@pytest.mark.parametrize("family", UNLIMITED, ids=lambda family: family.name)
def test_a_family_without_a_limit_reads_every_word(family: Family, tmp_path: Path) -> None:
    folder = write_tiny_model(family.name, tmp_path / "model")
    pipe = pipeline_class(family).from_pretrained(device="cpu", model_configs=[ModelConfig(path=folder)])
    unit = prompt_unit(pipe)
    lengths = [unit.process(pipe, prompt="cat" + " cat" * words)["prompt_embeds"].shape[1] for words in (1, 1500)]
    assert lengths[1] - lengths[0] == 1499


@pytest.mark.parametrize("family", LIMITED, ids=lambda family: family.name)
def test_the_unit_cuts_a_prompt_exactly_when_the_family_counts_more_tokens_than_its_limit(
    family: Family, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_tiny_model(family.name, tmp_path / "model")
    resolved = resolve_model(str(folder))
    limit = family.prompt_limit
    assert limit is not None
    reader = resolved.find_reader(limit.reader)

    def count(words: int) -> int:
        return limit.count(reader, ["cat" + " cat" * words], resolved.known_index)[0]

    words = next(number for number in range(limit.tokens - count(0), 0, -1) if count(number) <= limit.tokens)
    assert count(words) == limit.tokens
    longest, longer = "cat" + " cat" * words, "cat" + " cat" * (words + 1)
    assert find_cut_prompts(resolved, [longest, longer, "cat"]).tokens == {longer: limit.tokens + 1}

    pipe = pipeline_class(family).from_pretrained(device="cpu", model_configs=[ModelConfig(path=folder)])
    unit = prompt_unit(pipe)
    for prompt, cut in ((longest, False), (longer, True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            unit.process(pipe, prompt=prompt)
        assert ("cut" in caplog.text) == cut
