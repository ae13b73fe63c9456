"""The collector is off inside and as it was outside, whatever happens."""

from __future__ import annotations

import gc

import pytest

from dsctl_core.gc_pause import paused_gc


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
