"""docs/guides/memory.md has the tables of its generator, and these the predictions of the dry run."""

from __future__ import annotations

import sys

import pytest

from tests.conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "docs"))
import memory_predictions
import memory_table

MODEL = "flux2-klein-base-4b"


@pytest.fixture(scope="module")
def data():
    return memory_predictions.read()


def test_the_page_has_the_tables_of_every_published_preset(data):
    assert memory_table.page() == memory_table.PAGE.read_text(encoding="utf-8"), "python docs/memory_table.py"
    assert set(memory_predictions.presets()) == set(data["same"])
    assert set(data["same"].values()) == set(data["predictions"])
    tables = memory_table.tables(data)
    assert {
        name: tables.count(f"{name},") + tables.count(f"{name} |") + tables.count(f"{name}.") for name in data["same"]
    }


def test_the_predictions_are_those_of_the_dry_run(data):
    known = data["predictions"][MODEL]
    drawing = memory_predictions.drawings(MODEL)
    assert list(drawing) == list(known["infer"])
    for held, found in drawing.items():
        before = memory_predictions.drawing_of(known["infer"][held])
        for how in ({}, {"apart": True}, {"apart": True, "waiting_blocks": 9}):
            assert found.peak(**how) == pytest.approx(before.peak(**how), rel=0.01)
    (trained,) = memory_predictions.trainings(MODEL, {"lora_rank": 32}, cards=(141,)).values()
    before = memory_predictions.prediction_of(known["lora"][""])
    found = memory_predictions.prediction_of(trained)
    assert found.peak == pytest.approx(before.peak, rel=0.01) and found.sizes == before.sizes
