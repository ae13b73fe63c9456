"""Derived seeds depend on everything they are derived from and on nothing else."""

from dsctl_core.random import derive_seed


def test_a_seed_is_the_same_on_every_machine():
    assert derive_seed(0, "order", 1) == 2231592691953414133


def test_every_part_and_its_type_and_place_matter():
    seeds = [derive_seed(*parts) for parts in [(1, 2), (2, 1), (12,), ("1", 2), (1, 2, 0), (1, "2"), ("1\x1f2",)]]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
