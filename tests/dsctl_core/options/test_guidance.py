"""The scale of guidance on the command line: one for all denoisers, or one for each by name."""

from __future__ import annotations

import pytest

from dsctl_core.commands.infer_inputs import fill_in
from dsctl_core.errors import UsageError
from dsctl_core.families.resolve import resolve_model
from dsctl_core.options import InferOptions
from dsctl_core.options.guidance import Guidance


@pytest.mark.parametrize(
    ("value", "own", "expected"),
    [
        (4, (4.0, 3.0), 4.0),
        ("4.5", 5.0, 4.5),
        ("dit=4,dit_2=3", 5.0, (4.0, 3.0)),
        ("dit_2=1, dit=2", (5.0, 5.0), (2.0, 1.0)),
        ("dit_2=1", (5.0, 4.0), (5.0, 1.0)),
    ],
)
def test_each_denoiser_has_its_scale_and_one_that_is_not_named_keeps_the_model_s(value, own, expected):
    assert Guidance.parse(value).of(["dit", "dit_2"], own) == expected


def test_a_model_of_one_denoiser_gets_a_number_and_a_name_that_it_lacks_is_refused():
    assert Guidance.parse("dit=2").of(["dit"], 5.0) == 2.0
    with pytest.raises(UsageError, match="unknown denoiser 'dit_3'"):
        Guidance.parse("dit_3=2").of(["dit", "dit_2"], 5.0)


@pytest.mark.parametrize("value", [2.5, "dit=4,dit_2=2.5"])
def test_a_record_of_a_run_has_the_scale_as_it_was_given(value):
    options = InferOptions(model="m", prompt="p", cfg_scale=value)
    assert options.flat_values("json")["cfg_scale"] == value
    assert InferOptions(model="m", prompt="p", cfg_scale=options.cfg_scale) == options


def test_infer_fills_in_the_scale_that_a_denoiser_is_published_with():
    resolved = resolve_model("wan2.2-t2v-a14b")
    own = resolved.defaults["cfg_scale"]
    given = {"model": "wan2.2-t2v-a14b", "prompt": "p"}
    assert fill_in(InferOptions(**given), resolved).cfg_scale == own
    assert fill_in(InferOptions(**given, cfg_scale="dit_2=1.5"), resolved).cfg_scale == (own[0], 1.5)
    assert fill_in(InferOptions(**given, cfg_scale=2), resolved).cfg_scale == 2.0
