"""Units in two stages: what runs once and what at every step, and that dividing them changes nothing."""

from __future__ import annotations

import inspect
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsctl_core.stages.sample import pick, unpick
from dsctl_core.stages.split import PER_STEP_INPUTS, EncodeGroup, Split, encode_groups, read_by, run, split
from dsctl_core.units import PipelineUnit, UnitRunner

NAMES = [*"abcdefghij", *PER_STEP_INPUTS]
MODELS = ["dit", "vae", "text_encoder"]


class Pipe:
    """What units get: a runner, weights that change as they are trained, and a clock for what is drawn anew."""

    def __init__(self) -> None:
        self.unit_runner = UnitRunner()
        self.weights = dict.fromkeys(MODELS, 0)
        self.step = 0


def make_unit(number: int, rng: random.Random) -> PipelineUnit:
    """Return a unit whose outputs tell everything that they depend on."""
    reads = rng.sample(NAMES, rng.randint(0, 3))
    writes = rng.sample([*"abcdefghij"], rng.randint(0, 2))
    models = rng.sample(MODELS, rng.choice([0, 0, 1]))
    draws, whole, apart = rng.random() < 0.15, rng.random() < 0.2, rng.random() < 0.5

    def value(pipe: Any, name: str, inputs: list[Any]) -> tuple[Any, ...]:
        return (number, name, *inputs, *(pipe.weights[m] for m in models), pipe.step if draws else None)

    def process(self: Any, pipe: Any, **given: Any) -> dict[str, Any]:
        # A declared output may be left out.
        return {n: value(pipe, n, [given.get(r) for r in reads]) for n in writes if skip is None or n != skip}

    def take(self: Any, pipe: Any, shared: dict, posi: dict, nega: dict) -> tuple[dict, dict, dict]:
        seen = [side.get(name) for side in (shared, posi) for name in reads]
        side = shared if number % 2 else posi
        side.update({name: value(pipe, name, seen) for name in writes})
        return shared, posi, nega

    skip = rng.choice([None, None, *writes])
    members = {
        "output_params": tuple(writes),
        "onload_model_names": tuple(models),
        "draws_each_step": draws,
        "separate_cfg": apart and not whole,
        "take_over": whole,
        "reads": tuple(reads),
        "process": take if whole else process,
    }
    if not whole:  # a signature with what this unit reads, all of it optional
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        listed = [inspect.Parameter(name, kind, default=None) for name in ("self", "pipe", *reads)]
        process.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined]
    return type(f"Unit{number}", (PipelineUnit,), members)()


def of(rng: random.Random) -> tuple[list[PipelineUnit], list[str], list[str]]:
    return (
        [make_unit(number, rng) for number in range(rng.randint(1, 9))],
        rng.sample(MODELS, rng.randint(0, 2)),
        rng.sample([*"abcdefghij"], rng.randint(1, 3)),
    )


def needs_of(parts: Split, required: list[str]) -> set[str]:
    return set(required).union(*(read_by(unit) for unit in parts.every_step)) - set(PER_STEP_INPUTS)


def steps(pipe: Pipe, trainable: list[str]) -> Iterator[dict[str, int]]:
    """Three steps of training: another seed at each, and weights that are another after it."""
    for step in range(3):
        pipe.step = step
        yield {"seed": step}
        for name in trainable:
            pipe.weights[name] += 1


def kinds_of(parts: Split, found: list[EncodeGroup]) -> set[str]:
    """Say in which ways a list of units is divided."""
    both = bool(parts.once and parts.every_step)
    ways = {"once": not parts.every_step, "every step": not parts.once, "both": both, "groups": len(found) > 1}
    return {name for name, so in ways.items() if so}


def test_training_from_the_cache_equals_training_without_it() -> None:
    counts = Counter({"once": 0, "every step": 0, "both": 0, "groups": 0})

    @settings(max_examples=800)
    @given(st.randoms(use_true_random=False))
    def divided_equals_whole(rng: random.Random) -> None:
        units, trainable, required = of(rng)
        cfg = rng.choice([1, 1, 2])
        shared = {"cfg_scale": cfg, **{name: name for name in rng.sample([*"abcdefghij"], rng.randint(0, 4))}}
        posi = {name: f"posi {name}" for name in rng.sample([*"abcdefghij"], rng.randint(0, 2))}
        nega = {f"negative_{name}": f"nega {name}" for name in rng.sample([*"abcdefghij"], rng.randint(0, 2))}
        whole, parted, parts = Pipe(), Pipe(), split(units, trainable)
        assert sorted(map(id, [*parts.once, *parts.every_step])) == sorted(map(id, units))
        needs = needs_of(parts, required)
        found = encode_groups(parts.once, needs)
        counts.update(kinds_of(parts, found))
        cached = pick((shared, posi, nega), needs.difference(*(group.keeps for group in found)))
        for group in found:  # each alone, as the first stage runs them
            assert not set(group.components) & set(trainable)
            cached.update(pick(run(group.units, parted, (shared, posi, nega)), group.keeps))
        for once, again in zip(steps(whole, trainable), steps(parted, trainable), strict=True):
            plain = run(units, whole, ({**shared, **once}, posi, nega))
            first, second, third = unpick(cached)
            divided = run(parts.every_step, parted, ({**first, **again}, second, third))
            # The loss reads the positive side.
            assert pick((*plain[:2], {}), required) == pick((*divided[:2], {}), required)

    divided_equals_whole()
    # The lists that were drawn divide in every way.
    assert min(counts.values()) >= 15, counts


def unit(name: str, reads: str = "", writes: str = "", models: str = "", **extra: Any) -> PipelineUnit:
    members = {
        "take_over": True,
        "reads": tuple(reads.split()),
        "output_params": tuple(writes.split()),
        "onload_model_names": tuple(models.split()),
        **extra,
    }
    return type(name, (PipelineUnit,), members)()


def names(units: Any) -> list[str]:
    return [type(unit).__name__ for unit in units]


@pytest.mark.parametrize(
    ("middle", "stays"),
    [
        (unit("Plain", "x", "y"), True),
        (unit("ReadsTheSeed", "seed", "y"), False),
        (unit("ReadsWhatIsFresh", "noise", "y"), False),
        (unit("OverwritesWhatIsFresh", "x", "noise"), False),
        (unit("OverwritesWhatWasRead", "x", "height"), False),
        (unit("UsesWhatIsTrained", "x", "y", "dit"), False),
        (unit("UsesWhatIsFrozen", "x", "y", "vae"), True),
        (unit("Draws", "x", "y", draws_each_step=True), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_reason_to_run_at_every_step(middle: PipelineUnit, stays: bool) -> None:
    noise, after = unit("Noise", "seed height", "noise"), unit("After", "y", "z")
    parts = split([noise, middle, after], ["dit.proj_out"])
    if stays:
        assert (names(parts.once), names(parts.every_step)) == (names([middle, after]), ["Noise"])
    else:
        assert type(middle).__name__ in names(parts.every_step)
        # What depends on it goes with it.
        assert ("After" in names(parts.every_step)) == ("y" in middle.output_params)


def test_lanes_are_what_hangs_together_without_what_nobody_needs() -> None:
    units = [
        unit("Text", "prompt", "raw", "text_encoder"),
        unit("Picture", "image", "latents", "vae"),
        unit("Refine", "raw", "embeds"),
        unit("Useless", "latents", "histogram"),
    ]
    found = encode_groups(units, {"embeds", "latents", "height"})
    assert [names(group.units) for group in found] == [["Text", "Refine"], ["Picture"]]
    assert [group.components for group in found] == [("text_encoder",), ("vae",)]
    assert found[0] == EncodeGroup((units[0], units[2]), frozenset({"prompt", "raw"}), frozenset({"embeds"}))


def test_a_unit_that_uses_only_what_is_frozen_of_a_trained_component_runs_once() -> None:
    class Whole(PipelineUnit):
        output_params = ("a",)
        onload_model_names = ("dit", "vae")

        def process(self, pipe: Any) -> dict[str, Any]:
            return {}

    class Frozen(Whole):
        frozen_use = ("dit",)

    whole, frozen = Whole(), Frozen()
    assert split([whole, frozen], ["dit"]) == Split((), (whole, frozen))  # the same output, so it follows
    assert split([frozen], ["dit"]) == Split((frozen,), ())
    assert split([frozen], ["vae"]) == Split((), (frozen,))
