"""docs/guides/memory.md has the tables of its generator, and these the predictions of the dry run."""

from __future__ import annotations

import re
import sys

import pytest
import torch

from dsctl_core.families.resolve import resolve_model
from dsctl_core.training.dry_run.drawing import drawing_memory
from tests.conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "docs"))
import memory_predictions
import memory_table

MODEL = "flux1-dev"


@pytest.fixture(scope="module")
def data():
    return memory_predictions.read()


def test_the_page_has_the_tables_of_every_published_preset(data):
    assert memory_table.page() == memory_table.PAGE.read_text(encoding="utf-8"), "python docs/memory_table.py"
    assert set(memory_predictions.presets()) == set(data["same"])
    assert set(data["same"].values()) == set(data["predictions"])
    words = re.findall(r"[\w.-]+\w", memory_table.tables(data))
    assert {name: words.count(name) for name in data["same"]} == dict.fromkeys(data["same"], 3), "once in each table"


@pytest.mark.parametrize(("model", "card", "cell"), [("qwen-image", 24, "B "), ("flux2-klein-base-4b", 12, "C (")])
def test_these_models_draw_on_small_cards_with_all_of_their_numbers(data, model, card, cell):
    assert memory_table.drawn({"": data["predictions"][model]["infer"][""]}, card).startswith(cell)


def test_the_predictions_are_those_of_the_dry_run(data):
    """Of a short model, the tensors of each moment, the encoders, and the size of a block are those of the whole."""
    resolved = resolve_model(MODEL)
    found = drawing_memory(resolved, memory_predictions.call_of(resolved), torch.bfloat16, depth=1)
    known = memory_predictions.drawing_of(data["predictions"][MODEL]["infer"][""])
    assert [each.components for each in found.moments] == [each.components for each in known.moments]
    tensors = [[each.tensors for each in drawing.moments] for drawing in (found, known)]
    assert tensors[0] == pytest.approx(tensors[1], rel=0.01)
    assert {**found.weights, "dit": 0} == {**known.weights, "dit": 0}
    assert set(found.blocks["dit"]) == set(known.blocks["dit"]) and len(known.blocks["dit"]) > len(found.blocks["dit"])
