"""The collector is off inside and as it was outside, whatever happens; what is imported for good is left alone."""

from __future__ import annotations

import gc
import sys
from types import ModuleType

import pytest

from dsctl_core import gc_pause
from dsctl_core.gc_pause import MANY, freeze_imports, paused_gc


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_is_off_inside_and_afterwards_as_it_was(on: bool) -> None:
    was_on = gc.isenabled()
    try:
        (gc.enable if on else gc.disable)()
        with paused_gc():
            with paused_gc():
                assert not gc.isenabled()
            assert not gc.isenabled()
        assert gc.isenabled() is on
    finally:
        (gc.enable if was_on else gc.disable)()


def test_an_import_that_fails_leaves_the_collector_on() -> None:
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError), paused_gc():
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled()


@pytest.mark.parametrize("modules", [MANY, 1])
@pytest.mark.parametrize("own_process", [True, False])
def test_what_large_imports_leave_is_frozen_in_a_process_of_its_own_alone(
    monkeypatch: pytest.MonkeyPatch, own_process: bool, modules: int
) -> None:
    monkeypatch.setattr(gc_pause, "_frozen", False)
    if own_process:
        freeze_imports()
    imported = {f"imported_{number}": ModuleType("imported") for number in range(modules)}
    before = gc.get_freeze_count()
    try:
        with paused_gc():
            for name, module in imported.items():
                monkeypatch.setitem(sys.modules, name, module)
        assert (gc.get_freeze_count() > before) is (own_process and modules == MANY)
    finally:
        gc.unfreeze()
