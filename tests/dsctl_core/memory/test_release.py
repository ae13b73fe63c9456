"""The collector runs where there is memory to gain, and not for what is smaller than its own cost."""

from __future__ import annotations

import gc

import pytest
from torch import nn

from dsctl_core.memory import release
from dsctl_core.memory.release import release_memory, weight_bytes


@pytest.mark.parametrize(("freed", "collects"), [(release.WORTH - 1, False), (release.WORTH, True)])
def test_only_a_large_model_is_worth_a_look_at_all_objects(
    monkeypatch: pytest.MonkeyPatch, freed: int, collects: bool
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda: calls.append(1))
    release_memory(freed)
    assert bool(calls) is collects


def test_the_bytes_of_models_are_those_of_weights_and_buffers() -> None:
    assert weight_bytes([nn.Linear(3, 2), nn.BatchNorm1d(2)]) == 4 * (6 + 2) + 4 * (2 + 2 + 2 + 2) + 8
