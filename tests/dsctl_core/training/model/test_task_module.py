"""Rows that are encoded while training: the same to the bit in a batch and alone, together where that is so."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.errors import DsctlError
from dsctl_core.families import families, load_family, pipeline_class
from dsctl_core.training.model.task_module import TaskModule
from tests.dsctl_core.training.conftest import picture
from tests.tiny_models import write_tiny_model

PROMPTS = ("a cat", "a dog", "a very long green train in the rain", "a cow")


@pytest.fixture(params=sorted(families()))
def module(request: pytest.FixtureRequest, tmp_path: Any) -> TaskModule:
    folder = write_tiny_model(request.param, tmp_path / "tiny")
    pipe = pipeline_class(load_family(request.param)).from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(folder)]
    )
    return TaskModule(pipe, "sft", lora_base_model="dit", lora_rank=2)


def rows(width: int = 64) -> list[dict[str, Any]]:
    return [
        {"image": picture(width, 64, number), "prompt": prompt, "seed": number, "_row": number}
        for number, prompt in enumerate(PROMPTS)
    ]


def test_rows_encoded_together_are_those_encoded_alone(module: TaskModule, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [module.encode([row])[0] for row in rows()]
    unit: Any = next(unit for unit in module.pipe.units if "prompt" in unit.input_params)
    whole, batches = unit.process, []

    def process(pipe: Any, prompt: list[str]) -> Any:
        batches.append(prompt)
        return whole(pipe, prompt)

    monkeypatch.setattr(unit, "process", process)
    together = module.encode(rows())
    assert len(batches) < len(PROMPTS)
    assert sorted(prompt for batch in batches for prompt in batch) == sorted(PROMPTS)
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            same = value.equal(other[name]) if isinstance(value, torch.Tensor) else value == other[name]
            assert same, name


def test_the_row_that_cannot_be_encoded_is_named(module: TaskModule) -> None:
    spoiled = rows()
    spoiled[2] = {**spoiled[2], "image": picture(72, 72, 2)}
    with pytest.raises(DsctlError, match=r"^row 3: the width 72 is not a multiple|^row 3: the height 72"):
        module.encode(spoiled)
