"""Tests for tiling for the time of a block."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dsctl_core.errors import UsageError
from dsctl_core.media.tiles import SIDES, strided_tiles


def vae() -> SimpleNamespace:
    """Return the attributes of a VAE that tiling sets."""
    return SimpleNamespace(use_tiling=False, **dict.fromkeys(SIDES, 7))


def test_tiles_are_set_inside_the_block_in_the_units_of_the_vae_and_are_as_before_after_an_error() -> None:
    tiled = vae()
    with pytest.raises(ValueError, match="out of memory"), strided_tiles(tiled, True, 256, 192, scale=16, unit=2):
        assert tiled.use_tiling
        assert [getattr(tiled, name) for name in SIDES] == [128, 128, 96, 96]
        raise ValueError("out of memory")
    assert tiled == vae()


def test_without_tiles_the_sizes_stay_and_tiling_that_was_on_is_off_inside_the_block() -> None:
    whole = vae()
    whole.use_tiling = True
    with strided_tiles(whole, False, 250, 300, scale=16):
        assert not whole.use_tiling
        assert {getattr(whole, name) for name in SIDES} == {7}
    assert whole.use_tiling


@pytest.mark.parametrize(("size", "stride"), [(256, 264), (250, 192), (256, 190), (256, 0)])
def test_a_size_or_stride_that_the_vae_cannot_cut_is_refused(size: int, stride: int) -> None:
    with (
        pytest.raises(UsageError, match=f"a tile of {size} with stride {stride}"),
        strided_tiles(vae(), True, size, stride, scale=8),
    ):
        pass
