"""In every family the loss of a batch of N is the mean over its N samples, for prompts of any lengths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.errors import DsctlError
from dsctl_core.families import families, load_family, pipeline_class
from dsctl_core.family import Family
from dsctl_core.lora.layers import tuner_layers
from dsctl_core.training.model.task_module import TaskModule
from tests.families_fixture.tiny import added_families, write_dawn
from tests.tiny_models import write_tiny_model

PROMPTS = ["a", "a small yellow star in the top left corner of a field", "two foxes", ""]


@pytest.fixture(scope="module", params=[*families(), "dawn"])
def module(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TaskModule]:
    """A LoRA, with weights that do something, on a tiny random model of the family in float32."""
    with added_families():
        yield module_of(load_family(request.param), tmp_path_factory.mktemp("tiny") / request.param)


def module_of(family: Family, folder: Path) -> TaskModule:
    write_dawn(folder) if family.name == "dawn" else write_tiny_model(family.name, folder)
    pipe = pipeline_class(family).from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(path=folder)]
    )
    module = TaskModule(pipe, "sft", lora_base_model="dit", lora_rank=4)
    for number, layer in enumerate(tuner_layers(pipe.component("dit")).values()):
        generator = torch.Generator().manual_seed(number)
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1, generator=generator)
    return module


def rows_of(module: TaskModule, sides: tuple[int, int], prompts: list[str] = PROMPTS) -> list[dict[str, Any]]:
    factor = module.pipe.family.division_factor
    rows = []
    for number, prompt in enumerate(prompts):
        coarse = np.random.default_rng(number).integers(0, 256, (3, 3, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((sides[0] * factor, sides[1] * factor))
        rows.append({"image": picture, "prompt": prompt, "seed": 7 + number, "_row": number})
    return rows


def loss_and_gradients(module: TaskModule, data: Any, weight: float = 1.0) -> tuple[float, list[Tensor]]:
    module.zero_grad()
    loss = module(data) * weight
    loss.backward()
    return float(loss.detach()), [p.grad.clone() for p in module.trainable_modules() if p.grad is not None]


@pytest.mark.parametrize("sides", [(2, 2), (3, 2), (2, 4)], ids=str)
def test_a_batch_gives_the_mean_of_the_losses_and_gradients_of_its_samples(module: TaskModule, sides: tuple[int, int]):
    rows = rows_of(module, sides)
    together, gradients = loss_and_gradients(module, rows)
    alone = [loss_and_gradients(module, row, 1 / len(rows)) for row in rows]
    assert together == pytest.approx(sum(loss for loss, _ in alone), abs=1e-5)
    assert len({round(loss, 6) for loss, _ in alone}) == len(rows), "the samples differ"
    assert len(gradients) >= 4
    for number, gradient in enumerate(gradients):
        wanted = sum(parts[number] for _, parts in alone)
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-5)
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients)


def test_the_order_within_a_batch_does_not_matter(module: TaskModule):
    rows = rows_of(module, (2, 2))
    assert float(module(rows).detach()) == pytest.approx(float(module(rows[::-1]).detach()), abs=1e-6)


def test_a_batch_of_several_sizes_is_refused_by_name(module: TaskModule):
    rows = [rows_of(module, (2, 2))[0], rows_of(module, (3, 2))[1]]
    with pytest.raises(DsctlError, match="one batch has (pictures|samples|clips)"):
        module(rows)


def test_every_family_is_seen_and_reckons_its_cache(module: TaskModule):
    family = module.pipe.family
    assert family.name in families()
    assert family.cache_bytes is not None, "`dsctl dataset validate --model` says how large a cache would be"
